package io.fletch.langchain4j;

import dev.langchain4j.data.embedding.Embedding;
import dev.langchain4j.exception.InternalServerException;
import dev.langchain4j.exception.InvalidRequestException;
import dev.langchain4j.exception.ModelNotFoundException;
import dev.langchain4j.model.embedding.EmbeddingModel;
import dev.langchain4j.model.embedding.listener.EmbeddingModelListener;
import dev.langchain4j.model.embedding.request.EmbeddingInput;
import dev.langchain4j.model.embedding.request.EmbeddingInputType;
import dev.langchain4j.model.embedding.request.EmbeddingParameter;
import dev.langchain4j.model.embedding.request.EmbeddingRequest;
import dev.langchain4j.model.embedding.request.EmbeddingRequestParameters;
import dev.langchain4j.model.embedding.response.EmbeddingResponse;
import dev.langchain4j.model.embedding.response.EmbeddingResponseMetadata;
import dev.langchain4j.model.output.TokenUsage;
import io.fletch.Embedder;
import io.fletch.FletchException;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.Set;

/**
 * A Fletch embedder as LangChain4j's {@code EmbeddingModel}. It owns nothing: the embedder stays
 * its opener's. Thread-safe; texts of requests that run at once share forward passes.
 *
 * <p>Models that want a prefix before queries and documents get them from {@link Builder#prefixes},
 * by the input type of the request. Without an input type a text is embedded as it is.
 *
 * <p><b>Errors.</b> {@code InvalidRequestException}: a text has too many tokens or none, or more
 * dimensions are asked for than there are. {@code ModelNotFoundException}: another model name.
 * {@code InternalServerException}: a kernel failed. {@code IllegalStateException}: the embedder is
 * closed.
 */
public final class FletchEmbeddingModel implements EmbeddingModel {
  private final Embedder embedder;
  private final String name;
  private final String query;
  private final String document;
  private final List<EmbeddingModelListener> listeners;

  private FletchEmbeddingModel(Builder builder) {
    embedder =
        Objects.requireNonNull(builder.embedder, "embedder: expected=an open one actual=null");
    name = builder.modelName == null ? embedder.name() : builder.modelName;
    query = builder.query;
    document = builder.document;
    listeners = builder.listeners;
  }

  /** A builder. */
  public static Builder builder() {
    return new Builder();
  }

  @Override
  public EmbeddingResponse doEmbed(EmbeddingRequest request) {
    if (request.modelName() != null && !request.modelName().equals(name)) {
      throw new ModelNotFoundException(
          "model: expected=" + name + " actual=" + request.modelName());
    }
    Integer dimensions = request.dimensions();
    int most = embedder.info().dimensions();
    if (dimensions != null && (dimensions < 1 || dimensions > most)) {
      throw new InvalidRequestException(
          "dimensions: expected=[1, " + most + "] actual=" + dimensions);
    }
    String prefix =
        switch (request.inputType()) {
          case null -> "";
          case EmbeddingInputType.QUERY -> query;
          case EmbeddingInputType.DOCUMENT -> document;
        };
    List<int[]> texts = new ArrayList<>();
    long tokens = 0;
    try {
      for (EmbeddingInput input : request.inputs()) {
        int[] ids = embedder.tokens(prefix + input.text());
        if (ids.length == 0) {
          throw new InvalidRequestException("text " + texts.size() + " has no tokens");
        }
        tokens += ids.length;
        texts.add(ids);
      }
    } catch (FletchException e) {
      throw new InvalidRequestException(e.getMessage(), e);
    }
    List<float[]> vectors;
    try {
      vectors = embedder.embedTokens(texts);
    } catch (FletchException e) {
      throw new InternalServerException("embedding failed: " + e.getMessage(), e);
    }
    List<Embedding> embeddings = new ArrayList<>();
    for (float[] vector : vectors) {
      embeddings.add(
          Embedding.from(dimensions == null ? vector : Embedder.shortened(vector, dimensions)));
    }
    return EmbeddingResponse.builder()
        .embeddings(embeddings)
        .metadata(
            EmbeddingResponseMetadata.builder()
                .modelName(name)
                .tokenUsage(new TokenUsage(Math.toIntExact(tokens), 0))
                .build())
        .build();
  }

  @Override
  public Set<EmbeddingParameter<?>> supportedParameters() {
    return Set.of(
        EmbeddingRequestParameters.MODEL_NAME,
        EmbeddingRequestParameters.DIMENSIONS,
        EmbeddingRequestParameters.INPUT_TYPE);
  }

  @Override
  public List<EmbeddingModelListener> listeners() {
    return listeners;
  }

  @Override
  public int dimension() {
    return embedder.info().dimensions();
  }

  @Override
  public String modelName() {
    return name;
  }

  /** Makes embedding models. */
  public static final class Builder {
    private Embedder embedder;
    private String modelName;
    private String query = "";
    private String document = "";
    private List<EmbeddingModelListener> listeners = List.of();

    private Builder() {}

    /** The embedder. Required; closed by its opener when the model is no longer used. */
    public Builder embedder(Embedder value) {
      embedder = value;
      return this;
    }

    /** The name in answers, and the only one that requests may give; by default the embedder's. */
    public Builder modelName(String value) {
      modelName = value;
      return this;
    }

    /**
     * What stands before texts whose input type is QUERY and DOCUMENT; nothing by default.
     *
     * @param forQueries for example {@code "search_query: "}
     * @param forDocuments for example {@code "search_document: "}
     */
    public Builder prefixes(String forQueries, String forDocuments) {
      query = Objects.requireNonNull(forQueries, "forQueries");
      document = Objects.requireNonNull(forDocuments, "forDocuments");
      return this;
    }

    /** Listeners, told of every request and what became of it. */
    public Builder listeners(List<EmbeddingModelListener> value) {
      listeners = List.copyOf(value);
      return this;
    }

    /** Makes the model. */
    public FletchEmbeddingModel build() {
      return new FletchEmbeddingModel(this);
    }
  }
}
