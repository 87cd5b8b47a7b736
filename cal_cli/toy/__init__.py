"""The default world: its images, its model and its benchmark."""
