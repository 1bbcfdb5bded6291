"""The function that Lambda calls: ``narserve/awslambda/handler.handler``."""

from narserve.awslambda.application import load_application
from narserve.awslambda.buffered import CARRIES, make_handler

handler = make_handler(load_application(CARRIES))
