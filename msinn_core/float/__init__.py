"""The network in IEEE floats, in torch: training, evaluation, and models that are not packed."""
