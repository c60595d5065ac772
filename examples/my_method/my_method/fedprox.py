"""PromptFL with a proximal term (Li et al. 2020): CE + (mu/2) |P - P_global|^2."""

from fedvlm.methods.promptfl import PromptConfig, PromptFL


class ProxConfig(PromptConfig):
    """PromptFL's settings and mu."""

    mu: float = 0.5


class FedProx(PromptFL):
    """The anchor is what the client received this round."""

    name = "my_fedprox"
    title = "PromptFL with my proximal term"
    Config = ProxConfig

    def loss(self, step):
        """Cross-entropy plus the proximal term on live parameters."""
        anchored = step.trained.keys() & step.received.keys()
        distance = sum((step.trained[name] - step.received[name]).square().sum() for name in sorted(anchored))
        return super().loss(step) + 0.5 * self.config.mu * distance
