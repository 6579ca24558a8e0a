"""Weights that live, for any model of PyTorch: what the tests beside transformers and those beside other libraries share."""

import torch


def enliven(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights with which a signal keeps its scale, batch norms that are not the identity; in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, mean, deviation):
        tensor.copy_(mean + deviation * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                normal(module.weight, 0.0, module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    normal(module.bias, 0.0, 0.1)
            if isinstance(module, torch.nn.BatchNorm2d):
                normal(module.weight, 1.0, 0.2)
                normal(module.bias, 0.0, 0.2)
                normal(module.running_mean, 0.0, 0.1)
                module.running_var.copy_(0.5 + 0.5 * torch.rand(module.running_var.shape, generator=generator))
    return model.eval()
