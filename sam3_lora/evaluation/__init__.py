"""What a model finds, and how good that is: prediction with official post-processing, and COCO metrics."""
