"""The command line: everything that people do with the pipeline, on AWS or on the local AWS."""
