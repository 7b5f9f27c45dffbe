"""Proofs about whole networks: operator norms, certificates, and the attack that tests them."""

from minicompress.certify.attacks import attack
from minicompress.certify.certificates import (
    BallCertificate,
    DomainCertificate,
    ball_certificate,
    ball_certificates,
    domain_certificate,
)
from minicompress.certify.lipschitz import output_bound
from minicompress.certify.operator_norms import conv_norm_upper
from minicompress.norms import spectral_norm_upper

__all__ = [
    "BallCertificate",
    "DomainCertificate",
    "attack",
    "ball_certificate",
    "ball_certificates",
    "conv_norm_upper",
    "domain_certificate",
    "output_bound",
    "spectral_norm_upper",
]
