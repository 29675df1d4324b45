"""The toybox's networks at debug size, on a fake world of coloured squares: they learn, pack, and load as stock."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPModel, CLIPVisionModelWithProjection, ViTModel

from dreambooth.errors import RunError, UserError
from dreambooth.toybox.model import (
    autoencoder,
    card,
    classifiers,
    clip,
    denoiser,
    engine,
    evaluate,
    identity,
    package,
    statistics,
)
from dreambooth.toybox.model.engine import Task
from dreambooth.toybox.model.renders import Renders, World, flipped, to_images, to_pixels
from dreambooth.toybox.model.sizes import DEBUG, NETWORKS, SIZES, Plan
from dreambooth.toybox.model.train import BUILDERS, RECORD, Bench, make_task, train
from dreambooth.toybox.model.train import trained as finished
from dreambooth.toybox.model.trials import Trial, compose
from dreambooth.toybox.world.scenes import Scene, to_dict
from dreambooth.toybox.world.vocabulary import CLASSES, COLOURS

SKIES = {"in the snow": (0.9, 0.9, 0.9), "on the beach": (0.9, 0.8, 0.4), "at night": (0.05, 0.05, 0.2)}
KINDS = CLASSES[:4]
PAINTS = ("red", "blue", "green")


def picture(scene: Scene) -> np.ndarray:
    """A square whose size is the class and whose colour is the visible one, with a stripe that is the subject."""
    image = np.empty((64, 64, 3))
    image[:] = SKIES[scene.context]
    half = (5, 11, 19, 30)[KINDS.index(scene.cls)]
    square = image[32 - half : 32 + half, 32 - half : 32 + half]
    square[:] = COLOURS[scene.visible_colour] if scene.visible_colour else (0.5, 0.5, 0.5)
    square[scene.subject_seed * half // 3 :][:3] = 1.0
    return (image * 255).astype(np.uint8)


def fake_renders(count: int, seed: int) -> Renders:
    rng = np.random.default_rng(seed)
    images, records = [], []
    for index in range(count):
        cls, context, colour = (str(rng.choice(names)) for names in (KINDS, list(SKIES), ("", *PAINTS)))
        scene = Scene(index, cls, int(rng.integers(5)), context, colour=colour or None)
        caption = " ".join(f"a {colour} {cls} {context}".split())
        images.append(picture(scene))
        records.append({"seed": index, "caption": caption, "scene": to_dict(scene)})
    return Renders(np.stack(images), records)


@pytest.fixture(scope="module")
def world() -> World:
    return World(fake_renders(256, 1), fake_renders(32, 2))


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, dict[str, list[float]]]:
    """Every network trained for its few steps, and its losses."""
    bench = Bench("debug", DEBUG, world, tmp_path_factory.mktemp("debug"), torch.device("cpu"))
    losses = {}
    for name in NETWORKS:
        points = train(bench, name, DEBUG.networks[name].plan, 0, None)
        losses[name] = [point.values["loss"] for point in points if "loss" in point.values]
    return bench, losses


@pytest.fixture(scope="module")
def packed(trained: tuple[Bench, dict[str, list[float]]]) -> Path:
    bench, _ = trained
    package.write(bench.home, bench.home / "package")
    return bench.home / "package"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_falls(name: str, trained: tuple[Bench, dict[str, list[float]]]) -> None:
    losses = trained[1][name]
    assert losses[-1] < 0.9 * losses[0]
    record = json.loads((trained[0].home / name / RECORD).read_text())
    assert record["steps"] == DEBUG.networks[name].plan.steps
    assert all(math.isfinite(value) for value in record["measured"].values())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_killed_network_resumes_to_the_same_weights(
    name: str, trained: tuple[Bench, dict[str, list[float]]], tmp_path: Path
) -> None:
    """The engine's test for the real tasks: every draw that they make comes from the step's generator."""
    bench = trained[0]
    task: Task = make_task(name, bench, 0)
    whole = [task.loss(engine.generator(3, step), 0.5)["loss"].item() for step in range(2)]
    torch.manual_seed(99)
    again = [task.loss(engine.generator(3, step), 0.5)["loss"].item() for step in range(2)]
    assert whole == again
    assert whole[0] != whole[1]


def test_the_first_weights_are_a_function_of_the_seed(trained: tuple[Bench, dict[str, list[float]]]) -> None:
    weights = [next(make_task("identity", trained[0], seed).module.parameters()) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_classifiers_recover_the_truth(world: World) -> None:
    module = classifiers.build({"channels": (8, 16, 32)}, world.train)
    plan = Plan(steps=120, batch=24, rate=1e-2, warmup=5, ema=0.9)
    task = classifiers.ClassifierTask(module, world, plan.batch)
    state = engine.start(module, plan)
    for _ in range(plan.steps):
        engine.update(task, state, plan, 0, "float32")
    measured = engine.evaluate(task, state)
    assert measured["class"] > 0.9
    assert measured["context"] > 0.9
    assert measured["colour"] > 0.8


def test_a_face_is_asked_for_its_expression_where_one_is_seen() -> None:
    dog = Scene(0, "dog", 0, "in the snow")
    answers = {
        "sad": replace(dog, expression="sad"),
        "none": dog,
        None: replace(dog, view="back"),
    }
    for answer, scene in answers.items():
        assert classifiers.ATTRIBUTES["expression"](scene) == answer
    assert classifiers.ATTRIBUTES["expression"](replace(dog, cls="car")) is None
    wet = replace(dog, properties=("wet",), material="stone")
    assert [classifiers.ATTRIBUTES[name](wet) for name in ("property", "material", "sculpture")] == [
        "wet",
        "stone",
        "none",
    ]


def test_a_classifier_is_read_back(trained: tuple[Bench, dict[str, list[float]]], world: World) -> None:
    bench = trained[0]
    measured = json.loads((bench.home / "classifiers" / RECORD).read_text())["measured"]
    task = classifiers.ClassifierTask(classifiers.load(finished(bench.home, "classifiers")), world, 8)
    assert task.evaluate() == pytest.approx(measured)


def test_normalised_latents_and_unchanged_pictures(world: World) -> None:
    torch.manual_seed(0)
    vae = autoencoder.build(DEBUG.networks["autoencoder"].config).eval()
    pixels_BCHW = world.train.pixels(torch.arange(8))
    before = autoencoder.decode(vae, autoencoder.encode(vae, pixels_BCHW))
    spread = vae.encode(pixels_BCHW).latent_dist
    autoencoder.normalise(vae, world.train)
    after = autoencoder.decode(vae, autoencoder.encode(vae, pixels_BCHW))
    assert torch.allclose(before, after, atol=1e-4)
    latents = torch.cat([autoencoder.encode(vae, world.train.pixels(rows)) for rows in world.train.batches(32)])
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(16), atol=1e-4)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(16), atol=1e-4)
    ratio = vae.encode(pixels_BCHW).latent_dist.std / spread.std
    assert torch.allclose(ratio, ratio[:1, :, :1, :1].expand_as(ratio), rtol=1e-3)


def test_psnr_equals_the_definition(world: World) -> None:
    vae = autoencoder.build(DEBUG.networks["autoencoder"].config).eval()
    made = to_images(autoencoder.decode(vae, autoencoder.encode(vae, world.held_out.pixels(torch.arange(32)))))
    square_N = np.square(made.astype(float) - world.held_out.images_NHWC).mean((1, 2, 3))
    measured_N = autoencoder.psnr(autoencoder.squares(vae, world.held_out, batch=20))
    assert measured_N.numpy() == pytest.approx(10 * np.log10(255**2 / square_N), abs=0.05)


def test_latents_are_made_anew_for_other_renders(world: World, tmp_path: Path) -> None:
    vae = autoencoder.build(DEBUG.networks["autoencoder"].config).eval()
    path = tmp_path / "latents.safetensors"
    first, _ = denoiser.cached_latents(vae, world, path)
    stamp = path.stat().st_mtime_ns
    again, held_out = denoiser.cached_latents(vae, world, path)
    assert path.stat().st_mtime_ns == stamp
    assert torch.equal(first, again)
    assert held_out.shape == (32, 16, 8, 8)
    one_mirrored = world.train.pixels(torch.tensor([5])).flip(-1)
    assert torch.allclose(first[1, 5].float(), autoencoder.encode(vae, one_mirrored)[0], atol=1e-2)
    denoiser.cached_latents(vae, World(world.train.part(slice(50)), world.held_out), path)
    assert path.stat().st_mtime_ns != stamp


def test_stock_code_loads_and_renders_the_package(packed: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(packed / "base")
    assert {part.dtype for part in (pipe.vae, pipe.unet, pipe.text_encoder)} == {torch.float32}
    assert len(pipe.tokenizer) == 49_408
    images = evaluate.draw(pipe, ["a red dog in the snow"] * 2, evaluate.Setting(2, 3.0))
    assert images.shape == (2, 64, 64, 3)
    assert "_name_or_path" not in (packed / "base" / "unet" / "config.json").read_text()


def test_the_package_is_the_trained_networks(trained: tuple[Bench, dict[str, list[float]]], packed: Path) -> None:
    bench = trained[0]
    pipe = StableDiffusionPipeline.from_pretrained(packed / "base")
    made = CLIPModel.from_pretrained(finished(bench.home, "clip"), dtype=torch.float32)
    table = pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(table, made.text_model.get_input_embeddings().weight)
    ids = clip.tokens(pipe.tokenizer, ["a blue cat at night"])
    with torch.no_grad():
        packed_text, made_text = pipe.text_encoder(ids).pooler_output, made.get_text_features(ids).pooler_output
    assert torch.allclose(packed_text, made_text, atol=1e-2)
    vae = AutoencoderKL.from_pretrained(finished(bench.home, "autoencoder"))
    weights = zip(pipe.vae.parameters(), vae.parameters(), strict=True)
    assert all(torch.allclose(one, two, rtol=1e-3, atol=1e-5) for one, two in weights)


def test_stock_code_loads_the_encoders(packed: Path, world: World) -> None:
    vision = CLIPVisionModelWithProjection.from_pretrained(packed / "encoders" / "image")
    vit = ViTModel.from_pretrained(packed / "encoders" / "identity", add_pooling_layer=False)
    pixels = world.held_out.pixels(torch.arange(4))
    assert clip.embed_images(vision, pixels).shape == (4, 128)
    assert identity.embed(vit, pixels).shape == (4, 32)


def test_a_package_over_the_limit_is_refused(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = package.check_sizes(packed)
    assert 6e6 < total < package.LIMIT
    monkeypatch.setattr(package, "LIMIT", total - 1)
    with pytest.raises(RunError, match="the limit is"):
        package.check_sizes(packed)


def test_a_network_that_is_not_trained_is_named(world: World, tmp_path: Path) -> None:
    bench = Bench("debug", DEBUG, world, tmp_path, torch.device("cpu"))
    with pytest.raises(UserError, match=r"autoencoder is not trained: run `python -m dreambooth\.toybox train auto"):
        make_task("denoiser", bench, 0)


def test_every_size_has_every_network() -> None:
    assert all(set(size.networks) == set(NETWORKS) for size in SIZES.values())
    assert set(BUILDERS) == set(NETWORKS)


def test_the_card_tells_what_was_recorded(trained: tuple[Bench, dict[str, list[float]]]) -> None:
    text = card.parts(trained[0].home)["training"]
    for name in card.OF_MODEL:
        record = json.loads((trained[0].home / name / RECORD).read_text())
        assert f"| {name} | {record['parameters'] / 1e6:.2f} M | {record['steps']} |" in text
        assert f"- {name}: loss " in text


def test_trials_ask_for_what_their_prompts_say() -> None:
    trials = [compose(number) for number in range(60)]
    assert [trial.prompt for trial in trials] == [compose(number).prompt for number in range(60)]
    asked = [name for trial in trials for name in trial.truth]
    for trial in trials:
        assert trial.truth["class"] in trial.prompt
        assert trial.truth.get("colour", "") in trial.prompt
        assert trial.truth["context"] in trial.prompt
        assert (trial.truth["accessory"] == "none") == (trial.scene.accessory is None)
    assert all(asked.count(name) > 5 for name in ("class", "context", "colour", "view", "accessory", "style"))


def test_frechet_distance_of_a_set_with_itself_is_zero() -> None:
    features = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    assert statistics.frechet(features, features) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_equals_the_formula() -> None:
    """Against the eigenvalues of the product of the covariances, whose square roots sum to the trace of its root."""
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(200, 6)) + 1
    covariances = [np.cov(features, rowvar=False) for features in (one, two)]
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real).sum()
    shift = np.square(one.mean(0) - two.mean(0)).sum()
    expected = shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots
    assert statistics.frechet(torch.tensor(one), torch.tensor(two)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)]
)
def test_interval_of_a_share(hits: int, count: int, low: float, high: float) -> None:
    """The last row is the example of Newcombe 1998, table II."""
    assert statistics.Share(hits, count).interval == pytest.approx((low, high), abs=1e-4)


def test_auc_counts_pairs() -> None:
    positive, negative = np.array([0.9, 0.5, 0.4]), np.array([0.5, 0.1])
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert identity.auc(positive, negative) == pytest.approx(sum(wins) / len(wins))


def test_identity_pairs_are_of_one_subject_that_looks_like_itself(world: World) -> None:
    task = identity.IdentityTask(identity.build(DEBUG.networks["identity"].config), world, 8)
    scenes = [record["scene"] for record in world.train.records]
    for step in range(5):
        for one, two in task.pairs(engine.generator(0, step)).tolist():
            assert one != two
            assert all(scenes[row]["colour"] is None for row in (one, two))
            assert [scenes[one][key] == scenes[two][key] for key in ("class", "subject_seed")] == [True, True]


def test_accuracies_count_what_each_prompt_asks(world: World) -> None:
    scene = Scene(0, "dog", 1, "in the snow", colour="red")
    asked = {"class": "dog", "context": "in the snow", "colour": "red"}
    trials = [
        Trial("", scene, asked),
        Trial("", scene, {**asked, "context": "at night"}),
        Trial("", scene, {"class": "cat"}),
    ]

    class Fixed(torch.nn.Module):
        """Always answers "a red dog in the snow"."""

        labels = classifiers.labels(world.train)

        def forward(self, pixels_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
            picked = {name: self.labels[name].index(asked.get(name, self.labels[name][0])) for name in asked}
            return {
                name: torch.nn.functional.one_hot(torch.tensor([at] * len(pixels_BCHW)), len(self.labels[name]))
                for name, at in picked.items()
            }

        def parameters(self, recurse: bool = True):  # type: ignore[no-untyped-def]
            return iter([torch.zeros(())])

    shares = evaluate.accuracies(Fixed(), np.zeros((3, 64, 64, 3), np.uint8), trials)
    counted = {name: (share.hits, share.count) for name, share in shares.items() if share.count}
    assert counted == {"class": (2, 3), "context": (1, 2), "colour": (2, 2), "all": (1, 3)}


def test_the_chosen_setting_has_most_pictures_right() -> None:
    def row(steps: int, value: float, distance: float) -> dict[str, object]:
        return {"steps": steps, "guidance": 4.0, "accuracy": {"all": {"value": value}}, "frechet": distance}

    assert evaluate.choose([row(10, 0.80, 1.0), row(20, 0.90, 3.0), row(30, 0.90, 2.0)]).steps == 30


def test_the_classifiers_ship_as_they_were_trained(
    packed: Path, trained: tuple[Bench, dict[str, list[float]]], world: World
) -> None:
    pixels = world.held_out.pixels(torch.arange(8))
    shipped, own = classifiers.load(packed / "classifiers"), classifiers.load(finished(trained[0].home, "classifiers"))
    for name, logits_BK in own(pixels).items():
        torch.testing.assert_close(shipped(pixels)[name], logits_BK, atol=0.02, rtol=0.02)  # half precision
    with pytest.raises(UserError, match="no classifiers in"):
        classifiers.load(packed)


def test_mirrored_by_the_draw(world: World) -> None:
    pixels = torch.rand(16, 3, 8, 8)
    turned = flipped(pixels, torch.Generator().manual_seed(0))
    mirrored = [not torch.equal(one, two) for one, two in zip(pixels, turned, strict=True)]
    assert 0 < sum(mirrored) < 16
    assert all(torch.equal(turned[index], pixels[index].flip(-1)) for index in range(16) if mirrored[index])
    assert np.array_equal(to_images(to_pixels(world.train.images_NHWC)), world.train.images_NHWC)
