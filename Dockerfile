# The README's two commands, for machines without a GPU:
#   docker build -t evatok . && docker run -v "$PWD/out:/evatok/out" evatok
# and its page:
#   docker run -p 7860:7860 evatok evatok app --host 0.0.0.0
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends g++ libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /evatok
COPY . .
RUN pip install -e ".[all]"
CMD ["bash", "-c", "evatok demo"]
