"""One run of the pipeline: configuration, data, stages, command line, cluster."""
