"Self-supervised pretraining of vision transformers by Group Masked Model Learning."
