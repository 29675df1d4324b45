"""CUDA graphs: what can be captured, what is captured anew, and that a graph gives what the pass gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreambooth import families, graphs, loop, methods
from dreambooth.cache import Memo, encode_prompt
from dreambooth.errors import UserError
from dreambooth.models import resolve
from dreambooth.run import Run
from tests import calls
from tests.commands import make_photos
from tests.test_loop import recipe_for
from tests.test_training import losses

CUDA = torch.device("cuda")
GRAPHED = ("sd", "sd-v", "sdxl", "sd3", "sd35", "flux", "deepfloyd", "sana", "flux2", "flux2-klein")


class StableDiffusionPipeline:
    """By its name alone."""


def require(device: torch.device = CUDA, processes: int = 1, **values: Any) -> None:
    recipe = recipe_for(Path("model"), **{"accumulation": 1, "cuda_graphs": True, **values})
    graphs.require(recipe, StableDiffusionPipeline(), device, processes)  # type: ignore[arg-type]


def test_a_plain_run_can_be_captured() -> None:
    require()
    require(method="full", rank=None, alpha=None)
    require(prior_loss="distilled")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"accumulation": 2}, "several passes"),
        ({"aspect": "keep"}, "several passes"),
        ({"more_resolutions": (64,)}, "several passes"),
        ({"method": "full", "step_in_backward": True}, "keeps its gradients"),
        ({"gradient_checkpointing": True}, "recomputed"),
        ({"compile": True}, "compiled"),
        ({"min_rank": 1}, "ranks"),
        ({"train_text_encoder": True}, "text encoder"),
        ({"method": "textual-inversion"}, "text encoder"),
        ({"adapter": "loha"}, "loha"),
        ({"base": "nf4"}, "few bits"),
    ],
)
def test_what_cannot_be_captured_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"--cuda-graphs does not go here, as .*{reason}.*: leave it out"):
        require(**values)


def test_there_must_be_a_gpu(tiny_sd: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="several processes"):
        require(processes=2)
    if not torch.cuda.is_available():
        done = calls.train(make_photos(tmp_path / "photos"), tiny_sd, "--cuda-graphs", out=tmp_path / "run")
        assert "--cuda-graphs does not go here, as there is no CUDA device: leave it out" in done.err
        assert done.status == 2


def test_each_shape_is_captured_once_and_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    captured, given = [], {"prompt_BD": torch.ones(2, 3)}

    def capture(module: nn.Module, samples: tuple[Tensor, ...], **_: Any) -> Callable[..., Tensor]:
        captured.append(samples[0].shape)
        return lambda *tensors: 2 * module(*tensors)

    def predict(denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return noisy_BCHW + cond["prompt_BD"].sum()

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    graphed = graphs.Graphs(predict)
    sides = [*range(1, graphs.MOST + 1), 1, graphs.MOST + 1]
    made = [graphed(nn.Identity(), torch.zeros(1, 1, side, side), torch.zeros(1), given).max() for side in sides]
    assert captured == [(1, 1, side, side) for side in range(1, graphs.MOST + 1)]
    assert [float(each) for each in made] == [*[12.0] * (graphs.MOST + 1), 6.0]


def test_a_pass_of_the_frozen_model_is_none_of_the_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda *_, **__: pytest.fail("captured"))
    graphed = graphs.Graphs(lambda denoiser, noisy_BCHW, t_B, cond: denoiser(noisy_BCHW))
    with torch.no_grad():
        assert graphed(nn.Identity(), torch.ones(1, 1, 2, 2), torch.zeros(1), {}).sum() == 4


def test_without_casts_a_lora_gives_the_same_numbers(tiny_sd: Path) -> None:
    recipe = recipe_for(tiny_sd)
    family = families.get("sd")
    pipe = family.load(resolve(str(tiny_sd)), torch.bfloat16)
    (group,) = methods.get("lora").attach(pipe, family, recipe)
    for weight in group.parameters.values():
        weight.data.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    texts = Memo(lambda text: encode_prompt(pipe, family, text))
    predicted, gradients = [], []
    for uncast in (False, True):
        trainee = loop.Trainee(pipe, family, {"unet": pipe.unet}, texts, uncast=uncast)
        assert bool(trainee._lora) == uncast
        noisy_BCHW = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", torch.bfloat16):
            out_BCHW = trainee(noisy_BCHW, torch.tensor([3, 700]), ["a dog", "a cat"], torch.zeros(2, 4))
        out_BCHW.float().square().sum().backward()
        predicted.append(out_BCHW.detach())
        gradients.append([weight.grad.clone() for weight in group.parameters.values()])
        for weight in group.parameters.values():
            weight.grad = None
    assert torch.equal(*predicted)
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))
    assert all(layer.cast_input_dtype_enabled for layer in trainee._lora)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("prior", [{"prior_weight": 0.0}, {"prior_loss": "parent"}], ids=["no prior", "parent"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", GRAPHED)
def test_a_graph_gives_what_the_pass_gives(
    name: str, method: str, prior: dict[str, Any], debug_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "photos")
    values = {"method": method, "steps": 6, "learning_rate": 1e-3, "precision": "fp32", **prior}
    found = []
    for graphed in (False, True):
        run = Run(tmp_path / str(graphed))
        flag = "--cuda-graphs" if graphed else "--no-cuda-graphs"
        done = calls.train(photos, debug_folder(name), flag, "--allow", "learning-rate", out=run.path, **values)
        assert done.status == 0, done
        found.append([each[1] for each in losses(run)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0][0] != found[0][-1]
