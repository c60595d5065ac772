"""Partial optimal transport between an image's patches and a class's prompts. P patches, G prompts."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def plan(similarity: Tensor, mass: float, smoothing: float, iterations: int) -> Tensor:
    """The plan T `[..., P, G]` that moves `mass` onto the prompts in equal parts, at most 1/P from each patch.

    It minimises <T, 1 - similarity> - smoothing H(T) by Dykstra's scaling (Chizat et al. 2018; FedOTP, equation 9):
    log u = min(0, log(1/P) - log K v), log v = log(mass/G) - log K' u with log K = -(1 - similarity) / smoothing. In
    logarithms and float32 nothing underflows, whatever the smoothing. The number of iterations is fixed, so that no
    image's plan depends on the others of its batch; column sums are exact. No gradient.
    """
    with torch.no_grad():
        log_kernel = (similarity.float() - 1) / smoothing
        patches, prompts = similarity.shape[-2:]
        most, share = -math.log(patches), math.log(mass / prompts)
        log_v = log_kernel.new_zeros(*similarity.shape[:-2], 1, prompts)
        log_u = log_kernel.new_zeros(*similarity.shape[:-1], 1)
        for _ in range(iterations):
            log_u = (most - torch.logsumexp(log_kernel + log_v, dim=-1, keepdim=True)).clamp(max=0)
            log_v = share - torch.logsumexp(log_kernel + log_u, dim=-2, keepdim=True)
        return (log_u + log_kernel + log_v).exp()
