"""What is run to work on the project: measurements, generated docs, checks of terraform/."""
