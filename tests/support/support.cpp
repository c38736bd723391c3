// Keeps the support library from being empty; its other files are picked up by name.
