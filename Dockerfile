# The image of edgegw: Python, a virtual environment, and nothing that a gateway does not use. docs/containers.md says how
# to run it and how to build it behind a mirror, with another base, or with an authority of your own.
#
# Both bases need the same Python at the same path. The second one may be without a shell and without pip: nothing is run
# in it. Every package comes from requirements.lock, by its hash.

ARG BASE=python:3.13-slim-trixie
ARG BUILD_BASE=${BASE}

FROM ${BUILD_BASE} AS build

# For a mirror of the package index. One that wants a password belongs into a pip.conf: the secret `pip_conf`, which stays
# out of the image and of its history. The secret `ca` is a file with the authorities to trust, if not the usual ones.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore PIP_QUIET=1 \
    PYTHONDONTWRITEBYTECODE=1

WORKDIR /src
RUN python3 -m venv /opt/edgegw
COPY requirements.lock ./
RUN --mount=type=secret,id=pip_conf,target=/run/secrets/pip.conf \
    --mount=type=secret,id=ca,target=/run/secrets/ca.pem \
    if [ -s /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi; \
    if [ -s /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi; \
    /opt/edgegw/bin/python -m pip install --require-hashes --only-binary :all: -r requirements.lock

COPY pyproject.toml README.md ./
COPY sql/ sql/
COPY edgegw/ edgegw/
RUN /opt/edgegw/bin/python -m pip install --no-deps --no-index --no-build-isolation . \
    && /opt/edgegw/bin/python -m pip uninstall --yes setuptools pip

ENV PYTHONPYCACHEPREFIX=/opt/edgegw/bytecode
COPY load/slim_install.py /src/load/
RUN PYTHONDONTWRITEBYTECODE='' /opt/edgegw/bin/python /src/load/slim_install.py \
    && rm -rf /opt/edgegw/include /opt/edgegw/share /opt/edgegw/bin/[Aa]ctivate* \
    && mkdir -p /rootfs/var/lib/edgegw /rootfs/etc/edgegw /rootfs/opt \
    && mv /opt/edgegw /rootfs/opt/ \
    && chown 65532:65532 /rootfs/var/lib/edgegw && chmod 700 /rootfs/var/lib/edgegw

FROM ${BASE}

ARG VERSION=0.1.0
ARG REVISION=
ARG SOURCE=
LABEL org.opencontainers.image.title="edgegw" \
      org.opencontainers.image.description="An AI gateway: exact limits, an exact ledger, streams that never end silently." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"

COPY --from=build /rootfs/ /

# Clients are served beyond the container, so either requests bring keys (EDGEGW_AUTH=keys) or somebody has to say that
# none are needed (EDGEGW_ALLOW_UNAUTHENTICATED=true); without either, it does not start and says so.
ENV PATH=/opt/edgegw/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPYCACHEPREFIX=/opt/edgegw/bytecode \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2 \
    EDGEGW_HOST=0.0.0.0 \
    EDGEGW_ADMIN_HOST=0.0.0.0 \
    EDGEGW_STATE_DIR=/var/lib/edgegw \
    HOME=/var/lib/edgegw

# A settings file is read when it is here as edgegw.yaml.
WORKDIR /etc/edgegw
# Journal, rows and sockets: the one place that is written to.
VOLUME ["/var/lib/edgegw"]
EXPOSE 8080 9090
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["edgegw", "healthcheck"]
ENTRYPOINT ["edgegw"]
CMD ["serve"]
