"""Networks: backbones, DeepLabV3+, IRNet, and the specification of a network."""
