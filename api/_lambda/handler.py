"""The function that Lambda calls: ``api/_lambda/handler.handler``."""

from api._lambda.application import load_application
from api._lambda.buffered import CARRIES, make_handler

handler = make_handler(load_application(CARRIES))
