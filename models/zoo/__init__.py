"""Models that come with stategate, and the benchmark that they were trained on."""
