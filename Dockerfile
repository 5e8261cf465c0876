# For a machine with an NVIDIA GPU, its driver and the NVIDIA container toolkit:
#
#     docker build -t maou_nb .
#     docker run --gpus all --shm-size 8g -p 127.0.0.1:8888:8888 \
#         -v "$PWD/runs:/home/user/runs" maou_nb
#
# CUDA comes with the wheels of PyTorch, the driver with the host: no CUDA image is needed.
# Not built where it was written, since no Docker daemon ran there; its pip commands were tried.
FROM python:3.12-slim

# g++ for torch.compile, a Japanese font for boards, git and make for development
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make fonts-noto-cjk \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PATH=/opt/venv/bin:$PATH

RUN useradd --create-home --uid 1000 user && install -d -o user /opt/venv /src
USER user

# torch first, in a layer of its own: gigabytes that a change of the library leaves alone
ARG TORCH=2.13.0
RUN python -m venv /opt/venv && pip install "torch==$TORCH"

WORKDIR /src
COPY --chown=user pyproject.toml setup.py settings.ini README.md LICENSE ./
COPY --chown=user maou_nb maou_nb
RUN pip freeze | grep -i '^torch==' > /opt/venv/torch.txt \
    && pip install -c /opt/venv/torch.txt ".[notebook,s3,gcs,dask,onnx,play]"

WORKDIR /home/user
COPY --chown=user nbs/tutorials nbs/tutorials
COPY --chown=user samples samples
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser"]
