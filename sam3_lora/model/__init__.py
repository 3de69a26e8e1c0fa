"""SAM3's image model at any size: architecture, building, weights, and the adaptations to upstream."""
