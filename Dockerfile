# paramerge on a CPU, or with CUDA:
#
#   docker build -t paramerge .
#   docker build -t paramerge:cuda --build-arg TORCH=https://download.pytorch.org/whl/cu128 .
#   docker run --rm -v "$PWD:/data" paramerge demo -o demo-output
#   docker run --rm -v "$PWD:/data" --gpus all paramerge:cuda train --model sdxl.safetensors ...
FROM python:3.11-slim

ARG TORCH=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY paramerge paramerge
COPY cli cli
COPY training training
RUN pip install --no-cache-dir --index-url "$TORCH" torch \
    && pip install --no-cache-dir ".[generate,train,evaluate]" \
    && rm -rf /src

RUN useradd --create-home user
USER user
WORKDIR /data
ENTRYPOINT ["paramerge"]
CMD ["--help"]
