"""Making the small base model that the repository ships."""
