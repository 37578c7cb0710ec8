"""Commands, scripts, configurations and manifests of other trainers, read and written as a MegatronTrainJob. Pure."""
