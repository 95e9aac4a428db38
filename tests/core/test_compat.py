"""What differs between PyTorch versions gives the same results in all of them."""

import torch
import torch.nn.functional as F

from xlsr_transducer.core.compat import gelu


def test_the_gradient_of_gelu_does_not_depend_on_its_memory_layout():
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        # What a wrong read would find in freed memory.
        used = [torch.full((n,), float("nan")) for n in range(100, 3000, 150)]
        del used
        x = torch.randn(8, 40, 11, generator=generator, requires_grad=True)
        y = gelu(x).transpose(1, 2).reshape(2, 44, 40)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        plain = x.detach().double().requires_grad_()
        (expected,) = torch.autograd.grad(F.gelu(plain).square().sum(), plain)
        assert torch.allclose(gradient.double(), expected, atol=1e-5)
