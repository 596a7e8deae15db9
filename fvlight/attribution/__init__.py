"""Which pixels matter to a unit [Gruen et al. 2016]: input modification, gradients and their relatives, relevance."""
