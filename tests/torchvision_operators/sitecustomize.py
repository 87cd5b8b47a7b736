"""Let PyPI's torchvision be imported beside a CPU build of torch, for which there is none.

Its transforms are Python and work. Its compiled operators are not registered, but the names of some must be known when
it is imported. Python imports this module at its start if its folder is on PYTHONPATH.
"""

import torch

OPERATORS = ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")

library = torch.library.Library("torchvision", "DEF")
for operator in OPERATORS:
    library.define(f"{operator}(Tensor unused) -> Tensor")
    library.define(f"_{operator}_backward(Tensor unused) -> Tensor")
