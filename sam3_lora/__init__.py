"""LoRA fine-tuning of SAM3 on COCO-format data: the training library, usable without the service."""
