# The control plane's image, see docker-compose.yml. No QEMU in it: node workers run on the hypervisors.
FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements.lock .
# Every locked package with its hash checked, those for development too; what the product needs is chosen below.
RUN pip wheel --require-hashes --no-deps --wheel-dir /wheels -r requirements.lock \
 && pip install --no-index --find-links /wheels hatchling
COPY pyproject.toml README.md ./
COPY haulier haulier
COPY tasks tasks
COPY models models
COPY migrations migrations
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:3.13-slim
RUN --mount=from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --disable-pip-version-check --root-user-action ignore --no-index --find-links /wheels haulier
# `celery -A tasks` looks for `tasks` before anything has imported haulier, which would put this folder on the path.
ENV PYTHONPATH=/usr/local/lib/python3.13/site-packages/haulier/_app PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin haulier
USER haulier
WORKDIR /tmp
CMD ["haulier", "--help"]
