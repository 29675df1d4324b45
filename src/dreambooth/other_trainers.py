"""What other trainers' settings are called here: who comes from diffusers' scripts or kohya's types those."""

from __future__ import annotations

FIRST = "the folder of photos comes first, without a flag: dreambooth train PHOTOS --class dog"
AGAIN = "the same command again goes on with an interrupted run"
EPOCHS = "steps are counted, not epochs: give --steps"

FLAGS = {
    "pretrained_model_name_or_path": "--model",
    "max_train_steps": "--steps",
    "lr": "--learning-rate",
    "unet_lr": "--learning-rate",
    "text_encoder_lr": "--text-encoder-learning-rate",
    "lr_scheduler": "--schedule",
    "lr_warmup_steps": "--warmup",
    "train_batch_size": "--batch-size",
    "output_dir": "--out",
    "output_name": "--out",
    "class_prompt": "--class",
    "class_data_dir": "--prior-images",
    "reg_data_dir": "--prior-images",
    "num_class_images": "--prior-count",
    "prior_loss_weight": "--prior-weight",
    "placeholder_token": "--identifier",
    "network_dim": "--rank",
    "lora_rank": "--rank",
    "network_alpha": "--alpha",
    "lora_alpha": "--alpha",
    "use_8bit_adam": "--optimizer adamw-8bit",
    "optimizer_type": "--optimizer",
    "adam_beta1": "--beta1",
    "adam_beta2": "--beta2",
    "adam_weight_decay": "--weight-decay",
    "use_ema": "--ema",
    "snr_gamma": "--min-snr",
    "min_snr_gamma": "--min-snr",
    "random_flip": "--flip",
    "flip_aug": "--flip",
    "enable_bucket": "--aspect keep",
    "mixed_precision": "--precision",
    "blocks_to_swap": "--offload-blocks",
    "checkpointing_steps": "--save-every",
    "save_every_n_steps": "--save-every",
    "checkpoints_total_limit": "--keep",
    "validation_prompt": "--scenes",
    "sample_prompts": "--scenes",
    "num_validation_images": "--samples",
    "num_inference_steps": "--inference-steps",
    "guidance_scale": "--guidance",
    "negative_prompt": "--negative",
}
"""Their flag -> ours, with its value where that says the same."""

SENTENCES = {
    "instance_data_dir": FIRST,
    "train_data_dir": FIRST,
    "instance_prompt": "give its noun as --class and its rare word as --identifier, or the whole caption as --label",
    "with_prior_preservation": "the class is kept unless --prior-weight is 0: leave it out",
    "gradient_accumulation_steps": "--batch-size counts all photos of a step, and --accumulation splits it up",
    "num_train_epochs": EPOCHS,
    "max_train_epochs": EPOCHS,
    "resume_from_checkpoint": AGAIN,
    "resume": AGAIN,
    "cache_latents": "photos are encoded once anyway: leave it out",
    "noise_offset": "there is no such setting: leave it out",
    "report_to": "the run's report.html tells its course, and --log-format json its progress: leave it out",
}
"""Their flag -> what to do instead, where no flag is the same."""


def setting(name: str) -> str:
    """Return the recipe's name for another trainer's setting; empty where it has none."""
    return FLAGS.get(name, "").partition(" ")[0].lstrip("-").replace("-", "_")
