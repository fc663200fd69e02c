"""The live page and what it is fed with."""

from fastapi import APIRouter

from conviction.server.service import Service


def router(service: Service) -> APIRouter:
    """The routes of the page: `/` and all below `/api/`.

    Called when the app is made, so before the service is entered.
    """
    del service
    return APIRouter()
