r"""The mutual information of latents and images as a term of an objective.

The lower bound of Barber and Agakov on the mutual information under the model's own joint distribution,

.. math:: I(z; x) \ge E_{p(z)\, p(x \mid z)} \bigl[ \log q(z \mid x) - \log p(z) \bigr],

is added with a weight :math:`\lambda` to what is maximized. Latents and images are drawn from the model, a pair for
each image of the batch. Pixels are integers, through which no gradient flows, and the gradient that is taken is that of
the posterior alone,

.. math:: \lambda\, E_{p(z)\, p(x \mid z)} \bigl[ \nabla \log q(z \mid x) \bigr],

with z and x held fixed. With respect to parameters of inference it is the gradient of the bound, without bias. What the
bound says about the generative model, by way of what it draws, is left out; parameters that inference shares with it
feel the part that goes through q. It is the sleep phase of the wake-sleep algorithm: the posterior learns to find the
latents that an image was made from, :math:`\lambda E_{p(x)} KL(p(z \mid x) \| q(z \mid x))` gets smaller. (InfoGAN
maximizes the same bound for images that are real numbers, and lets the generator feel it. InfoVAE and mutual posterior
divergence ask for informative latents of the data's images instead, also by way of the posterior.)

Everything is computed in eval mode: batch norms use their running statistics, which images of the model do not move.

References:
    The IM Algorithm: A Variational Approach to Information Maximization, D. Barber, F. Agakov, NeurIPS 2003,
    https://papers.nips.cc/paper/2410-information-maximization-in-noisy-channels-a-variational-approach

    The "Wake-Sleep" Algorithm for Unsupervised Neural Networks, G. E. Hinton, P. Dayan, B. J. Frey, R. M. Neal, Science
    1995, https://doi.org/10.1126/science.7761831

    InfoGAN: Interpretable Representation Learning by Information Maximizing Generative Adversarial Nets, X. Chen,
    Y. Duan, R. Houthooft, J. Schulman, I. Sutskever, P. Abbeel, NeurIPS 2016, https://arxiv.org/abs/1606.03657

    InfoVAE: Balancing Learning and Inference in Variational Autoencoders, S. Zhao, J. Song, S. Ermon, AAAI 2019,
    https://arxiv.org/abs/1706.02262

    MAE: Mutual Posterior-Divergence Regularization for Variational AutoEncoders, X. Ma, C. Zhou, E. Hovy, ICLR 2019,
    https://arxiv.org/abs/1901.01498
"""

from __future__ import annotations

from torch import Tensor

from davi.errors import UserError
from davi.evaluation.mutual_information import no_bound
from davi.model import Hierarchy, Network
from davi.model.joint import ask, draw_joint, evaluating, posterior_log_prob


def information_term(model: Hierarchy, n: int) -> Tensor:
    """The bound from n draws of torch's default generator, a scalar in nats, with the gradient of the module docstring.

    Arguments:
        model: all of whose posteriors know their density anywhere; its modes and buffers stay as they are.
        n: how many.
    """
    with evaluating(model):
        drawn = draw_joint(model, n)
        return (posterior_log_prob(model, drawn.x, drawn.latents) - drawn.log_pz).mean()


def check_information(model: Network, weight: float) -> None:
    """Refuse a model whose posteriors cannot score latents that the model has drawn.

    Raises:
        UserError: one line.
    """
    given = f"objective: got mutual_information_weight {weight:g} for {model.name}"
    if not isinstance(model, Hierarchy):
        raise UserError(f"{given}, expected a model with layers of latents")
    if why := no_bound(ask(model)):
        raise UserError(f"{given}, expected another posterior: {why}")
