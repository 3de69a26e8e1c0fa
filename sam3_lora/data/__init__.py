"""From COCO files to the batches that SAM3 trains on."""
