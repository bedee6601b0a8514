"""lapbench: how well do importance maps of CNNs point at what is really there?"""
