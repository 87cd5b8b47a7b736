"""The default world: its pictures, its model and its benchmark."""
