"""Several layers: what a stack of the toy's layers answers when adapters lie in layers of their own.

The residual stream r at a position starts as its token's embedding. Layer l = 1 .. L reads and writes it,

    h_l = r_{l-1} + V_l sum_j a_j r_{l-1}(position j)       (masks and attention as in one layer, eq. 4, 5)
    o_l = (W_l + Delta_l) relu(U_l h_l)                      one number for each entity
    r_l = h_l + sum_e o_l[e] u_e                             (r_{l-1} in place of h_l: attention_stays=False)

at every position, and the answer is the largest entry of sum_l o_l at the last one (or of <u_e, r_L> with
unembedding=True). Tied: u_e is the embedding of the token e, so that upper layers read what lower ones
answer. Untied: u_e is a vector of its own. One layer is the model of theory.md, section 1.

An adapter is the least-norm update of P2 in its layer, on the features its prompts have there without other
adapters. On several layers it stores equal parts, each on the features that those below leave, so alone it is
exact. In the limits of width and dimension this is all closed form: with m -> infinity a layer is its kernel,
and with d -> infinity the words V_l .. V_k e_t in which a stream is written are orthonormal.
"""

from toytransformer.layers.directions import Directions, SampledDirections, drawn
from toytransformer.layers.prediction import StackPrediction, predict, threshold
from toytransformer.layers.stack import Placement, Stack
from toytransformer.two_layers import LayerError, TwoLayers, two_layers

__all__ = [
    "Directions",
    "LayerError",
    "Placement",
    "SampledDirections",
    "Stack",
    "StackPrediction",
    "TwoLayers",
    "drawn",
    "predict",
    "threshold",
    "two_layers",
]
