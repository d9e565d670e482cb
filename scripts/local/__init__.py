"""The local AWS, and this project deployed to it."""
