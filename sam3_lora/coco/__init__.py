"""COCO datasets: safe extraction, layouts, one schema, and the validation report. Free of torch."""
