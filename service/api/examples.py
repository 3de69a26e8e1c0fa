"""Examples of bodies in the OpenAPI document, by the name of their schema: they are one story, of a job on pallets."""

from __future__ import annotations

from typing import Any

_JOB = "job_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"
_DATASET = "ds_019aa0b0f1e27c3d8a9b0c1d2e3f4a5b"
_CHECKPOINT = "ckpt_019aa0b9a1b27c3d8a9b0c1d2e3f4a5b"
_MODEL = "model_019aa0baf4e57d6c8b7a0f1e2d3c4b5a"
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_CONFIG = {"lora": {"rank": 16, "alpha": 32.0}, "training": {"max_epochs": 20, "batch_size": 2}}
_SUMMARY = {
    "errors": 0,
    "warnings": 1,
    "images": 240,
    "instances": 1873,
    "categories": 2,
    "images_without_annotations": 4,
    "truncated": False,
}

REQUESTS: dict[str, list[Any]] = {
    "JobCreate": [
        {"name": "pallets-v3", "dataset_id": _DATASET},
        {
            "name": "pallets-v3",
            "dataset_id": _DATASET,
            "base_model": "sam3",
            "config": _CONFIG,
            "tags": ["pallets"],
            "metadata": {"ticket": "A-1"},
            "limits": {"max_runtime_s": 14400},
        },
    ],
    "JobPatch": [{"priority": 80, "metadata": {"ticket": "A-2"}}],
    "JobClone": [{"overrides": {"name": "pallets-v4", "config": {"lora": {"rank": 32}}}}],
    "JobRetry": [{"from_scratch": False}],
    "SweepCreate": [
        {
            "name": "ranks",
            "job": {"base_model": "sam3", "dataset_id": _DATASET},
            "parameters": {"lora.rank": {"values": [8, 16, 32]}},
        },
        {
            "name": "rates",
            "job": {"base_model": "sam3", "dataset_id": _DATASET},
            "parameters": {"training.learning_rate": {"min": 0.00001, "max": 0.001, "scale": "log"}},
            "method": "random",
            "trials": 8,
        },
    ],
    "DatasetCreate": [
        {"name": "pallets", "source": {"type": "uri", "uri": "https://data.example.org/pallets.zip"}},
        {"source": {"type": "upload", "upload_id": "upload_019aa0b0a2b37c4d8e9f0a1b2c3d4e5f"}, "sha256": _SHA256},
        {"source": {"type": "path", "path": "/data/pallets"}},
        {"source": {"type": "demo"}},
    ],
    "UploadCreate": [{"filename": "pallets.zip", "bytes": 7340032000, "sha256": _SHA256}],
    "OpenAIUploadCreate": [
        {"purpose": "fine-tune", "filename": "pallets.zip", "bytes": 7340032000, "mime_type": "application/zip"}
    ],
    "UploadComplete": [
        {"part_ids": ["part_019aa0b0a2b37c4d8e9f0a1b2c3d4e60"], "md5": "900150983cd24fb0d6963f7d28e17f72"}
    ],
    "ComparisonCreate": [{"dataset_id": _DATASET, "models": ["sam3", _MODEL]}],
    "WebhookEndpointCreate": [
        {"url": "https://example.org/hooks/sam3", "events": ["job.succeeded", "job.failed"], "description": "ops chat"}
    ],
    "WebhookEndpointPatch": [{"enabled": True}],
    "ApiKeyCreate": [{"name": "ci", "scopes": ["write"], "expires_in_s": 7776000}],
    "ApiKeyRotate": [{"grace_s": 3600}],
    "QuotaLimits": [{"max_active_jobs": 100, "max_running_gpus": 4, "max_stored_bytes": 1000000000000}],
    "FineTuningJobCreate": [
        {
            "model": "sam3",
            "training_file": _DATASET,
            "suffix": "pallets-v3",
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 20, "batch_size": 2}}},
        }
    ],
}
"""What can be sent."""

ANSWERS: dict[str, Any] = {
    "DatasetRead": {
        "id": _DATASET,
        "object": "dataset",
        "name": "pallets",
        "project": "default",
        "status": "ready",
        "filename": "pallets.zip",
        "source": {"type": "file", "upload_id": None, "uri": None, "path": None},
        "bytes": 734003200,
        "sha256": _SHA256,
        "summary": _SUMMARY,
        "error": None,
        "created_at": "2026-11-20T09:00:00Z",
        "finished_at": "2026-11-20T09:00:41Z",
        "urls": {
            "self": f"/v1/datasets/{_DATASET}",
            "validation": f"/v1/datasets/{_DATASET}/validation",
            "preview": f"/v1/datasets/{_DATASET}/preview",
        },
    },
    "DatasetValidation": {
        "object": "dataset.validation",
        "dataset_id": _DATASET,
        "status": "ready",
        "summary": _SUMMARY,
        "issues": [
            {
                "severity": "warning",
                "code": "duplicate_image",
                "file": "train/_annotations.coco.json",
                "pointer": "/images/17",
                "image": "train/0017.jpg",
                "annotation_id": None,
                "message": "the image has the same content as train/0003.jpg",
                "hint": "Remove one of them.",
                "count": 1,
            }
        ],
        "stats": {
            "per_category": [
                {"id": 1, "name": "pallet", "instances": 1402, "images": 231},
                {"id": 2, "name": "forklift", "instances": 471, "images": 188},
            ],
            "image_sizes": {
                "width": {"min": 1280, "max": 1920, "median": 1920},
                "height": {"min": 720, "max": 1080, "median": 1080},
            },
            "duplicates": 1,
        },
    },
    "JobRead": {
        "id": _JOB,
        "object": "job",
        "name": "pallets-v3",
        "project": "default",
        "status": "running",
        "phase": "training",
        "status_reason": None,
        "is_terminal": False,
        "allowed_actions": ["cancel", "stop", "pause"],
        "base_model": "sam3",
        "init_from": None,
        "retry_of": None,
        "resumes_from": None,
        "dataset_id": _DATASET,
        "validation_dataset_id": None,
        "sweep_id": None,
        "trial": None,
        "config": _CONFIG,
        "resolved": {"config": _CONFIG},
        "seed": 42,
        "resources": {"gpus": 1},
        "priority": 50,
        "limits": {"max_runtime_s": 86400, "max_attempts": 3},
        "tags": ["pallets"],
        "metadata": {"ticket": "A-1"},
        "queue": {"jobs_ahead": None, "estimated_start_at": None, "reason": None},
        "progress": {
            "percent": 42.5,
            "epoch": 9,
            "epochs": 20,
            "step": 816,
            "steps": 1920,
            "eta_s": 1320.0,
            "images_per_s": 1.7,
            "updated_at": "2026-11-20T09:32:10Z",
            "loss": 3.21,
            "images_done": None,
            "images_total": None,
        },
        "attempt": 1,
        "worker": {
            "id": "gpu-1",
            "device": "NVIDIA L4",
            "last_heartbeat_at": "2026-11-20T09:32:12Z",
        },
        "best": {"checkpoint_id": _CHECKPOINT, "metric": "segm_mAP", "value": 0.612, "epoch": 8},
        "result": None,
        "error": None,
        "usage": {"gpu_seconds": 1892.0, "peak_memory_bytes": None},
        "trainable": {"parameters": 6291456, "percent": 0.74},
        "created_at": "2026-11-20T09:00:30Z",
        "queued_at": "2026-11-20T09:00:41Z",
        "started_at": "2026-11-20T09:00:43Z",
        "finished_at": None,
        "urls": {
            "self": f"/v1/jobs/{_JOB}",
            "html": f"/ui/jobs/{_JOB}",
            "events": f"/v1/jobs/{_JOB}/events",
            "stream": f"/v1/jobs/{_JOB}/events/stream",
            "metrics": f"/v1/jobs/{_JOB}/metrics",
            "logs": f"/v1/jobs/{_JOB}/logs",
            "logs_stream": f"/v1/jobs/{_JOB}/logs/stream",
            "checkpoints": f"/v1/jobs/{_JOB}/checkpoints",
            "attempts": f"/v1/jobs/{_JOB}/attempts",
            "evaluation": f"/v1/jobs/{_JOB}/evaluation",
            "report": f"/v1/jobs/{_JOB}/report",
            "samples": f"/v1/jobs/{_JOB}/samples",
            "dataset": f"/v1/datasets/{_DATASET}",
        },
    },
    "EventRead": {
        "id": "evt_019aa0b9a1b37c4d8e9f0a1b2c3d4e5f",
        "object": "job.event",
        "seq": 12,
        "job_id": _JOB,
        "attempt": 1,
        "created_at": "2026-11-20T09:28:03Z",
        "type": "checkpoint",
        "level": "info",
        "message": "saved checkpoints/best",
        "data": {"checkpoint_id": _CHECKPOINT, "kind": "best", "epoch": 8, "step": 768},
    },
    "MetricsRead": {
        "object": "job.metrics",
        "job_id": _JOB,
        "keys": ["base/segm_mAP", "train/loss"],
        "last_step": 816,
        "series": {
            "train/loss": [
                {"step": 1, "epoch": 1.0, "value": 9.87, "finite": True, "created_at": "2026-11-20T09:02:05Z"},
                {"step": 816, "epoch": 9.0, "value": 3.21, "finite": True, "created_at": "2026-11-20T09:32:10Z"},
            ]
        },
        "constants": {"base/segm_mAP": 0.401},
    },
    "EvaluationRead": {
        "object": "job.evaluation",
        "job_id": _JOB,
        "status": "complete",
        "metric": "segm_mAP",
        "base": {
            "epoch": 0,
            "step": 0,
            "images": 48,
            "metrics": {"segm_mAP": 0.401},
            "absent_prompts": [{"prompt": "bicycle", "false_alarms": 0, "images": 48}],
        },
        "tuned": {
            "epoch": 18,
            "step": 1728,
            "images": 48,
            "metrics": {"segm_mAP": 0.641},
            "absent_prompts": [{"prompt": "bicycle", "false_alarms": 1, "images": 48}],
        },
        "metrics": [
            {"metric": "segm_mAP", "base": 0.401, "tuned": 0.641, "difference": 0.24, "is_better": True},
        ],
        "per_category": [
            {
                "name": "pallet",
                "ids": [1],
                "metrics": [
                    {"metric": "segm_mAP", "base": 0.455, "tuned": 0.702, "difference": 0.247, "is_better": True},
                ],
            }
        ],
        "notes": [],
        "history": [{"epoch": 18, "step": 1728, "is_best": True, "metrics": {"segm_mAP": 0.641}}],
        "files": [
            {
                "model": "tuned",
                "name": "predictions.json",
                "bytes": 482113,
                "sha256": _SHA256,
                "url": f"/v1/jobs/{_JOB}/evaluation/tuned/predictions.json",
            }
        ],
    },
    "CheckpointRead": {
        "id": _CHECKPOINT,
        "object": "checkpoint",
        "job_id": _JOB,
        "attempt": 1,
        "kind": "best",
        "epoch": 8,
        "step": 768,
        "metric": "segm_mAP",
        "value": 0.612,
        "files": [
            {
                "name": "adapter_model.safetensors",
                "bytes": 25182312,
                "sha256": _SHA256,
                "url": f"/v1/checkpoints/{_CHECKPOINT}/files/adapter_model.safetensors",
            }
        ],
        "archive": {"bytes": 25182478, "sha256": _SHA256, "url": f"/v1/checkpoints/{_CHECKPOINT}/archive"},
        "created_at": "2026-11-20T09:28:03Z",
    },
    "ModelRead": {
        "id": _MODEL,
        "object": "model",
        "name": "pallets-v3",
        "project": "default",
        "job_id": _JOB,
        "base_model": "sam3",
        "epoch": 18,
        "step": 1728,
        "metric": "segm_mAP",
        "value": 0.641,
        "files": [{"name": "adapter_model.safetensors", "bytes": 25182312, "sha256": _SHA256}],
        "archive": {"bytes": 25182478, "sha256": _SHA256, "url": f"/v1/models/{_MODEL}/export?format=native"},
        "created_at": "2026-11-20T10:04:52Z",
        "created": 1795169092,
        "owned_by": "default",
        "urls": {
            "self": f"/v1/models/{_MODEL}",
            "predict": f"/v1/models/{_MODEL}/predict",
            "export": f"/v1/models/{_MODEL}/export",
            "job": f"/v1/jobs/{_JOB}",
        },
    },
}
"""What is answered."""
