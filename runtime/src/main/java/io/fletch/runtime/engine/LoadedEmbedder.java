package io.fletch.runtime.engine;

import io.fletch.Embedder;
import io.fletch.EmbedderOptions;
import io.fletch.EmbedderOptions.Overlong;
import io.fletch.FletchException;
import io.fletch.ModelOptions;
import io.fletch.Pooling;
import io.fletch.Tokenizer;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.KvCache;
import io.fletch.graph.Span;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Deque;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;

/**
 * An open embedding model. Texts queue up; of the threads that wait for some, one runs the next
 * forward for as many as fit, while the others wait. One cache holds the keys and values of all
 * texts of a forward, each in slots of its own.
 */
final class LoadedEmbedder implements Embedder {
  private final String name;
  private final Info info;
  private final WeightFile file;
  private final TensorStore derived;
  private final Executable executable;
  private final Tokenizer tokenizer;
  private final Overlong overlong;

  /** Special tokens that are put before and after a text. */
  private final int before;

  private final int after;

  // Used by the thread that runs a forward.
  private final KvCache kv;
  private final Batch batch;
  private final float[] row;

  private final ReentrantLock lock = new ReentrantLock(true);
  private final Condition changed = lock.newCondition();

  // Guarded by the lock.
  private final Deque<Job> waiting = new ArrayDeque<>();
  private boolean running;
  private boolean closed;

  LoadedEmbedder(
      String name,
      Info info,
      WeightFile file,
      TensorStore derived,
      Executable executable,
      int rows,
      Tokenizer tokenizer,
      EmbedderOptions options) {
    this.name = name;
    this.info = info;
    this.file = file;
    this.derived = derived;
    this.executable = executable;
    this.tokenizer = tokenizer;
    overlong = options.overlong();
    int[] plain = tokenizer.encode("a", false, true);
    int[] whole = tokenizer.encode("a");
    int at = 0;
    while (at + plain.length < whole.length
        && !Arrays.equals(whole, at, at + plain.length, plain, 0, plain.length)) {
      at++;
    }
    before = at;
    after = whole.length - at - plain.length;
    if (info.maxTokens() <= before + after) {
      throw new FletchException(
          "most tokens of a text: expected more than the special tokens around it="
              + (before + after)
              + " actual="
              + info.maxTokens());
    }
    row = new float[info.embeddingLength()];
    kv = executable.newKvCache(Math.max(rows, info.maxTokens()), type(options.model().kvType()));
    try {
      batch = executable.newBatch(rows, rows);
    } catch (RuntimeException | Error e) {
      kv.close();
      throw e;
    }
  }

  private static KvCache.Type type(ModelOptions.KvType type) {
    return switch (type) {
      case F32 -> KvCache.Type.F32;
      case F16 -> KvCache.Type.F16;
      case Q8_0 -> KvCache.Type.Q8_0;
    };
  }

  /** A text on its way; written by the thread that runs its forwards, then read by its own. */
  private static final class Job {
    final int[] ids;
    final Pooling pooling;
    final float[][] vectors;
    final double[] sum;
    int done;
    Throwable failure;

    /** Guarded by the lock. */
    boolean finished;

    Job(int[] ids, Pooling pooling, int width) {
      this.ids = ids;
      this.pooling = pooling;
      vectors = new float[pooling == Pooling.NONE ? ids.length : 1][];
      sum = new double[pooling == Pooling.MEAN ? width : 0];
    }

    int left() {
      return ids.length - done;
    }

    /** Whether the state of a token is needed. */
    boolean wants(int token) {
      return switch (pooling) {
        case MEAN, NONE -> true;
        case CLS -> token == 0;
        case LAST -> token == ids.length - 1;
      };
    }
  }

  @Override
  public String name() {
    return name;
  }

  @Override
  public Info info() {
    return info;
  }

  @Override
  public Tokenizer tokenizer() {
    return tokenizer;
  }

  @Override
  public String backendDescription() {
    return executable.description();
  }

  @Override
  public int[] tokens(String text) {
    int[] ids = tokenizer.encode(text);
    int most = info.maxTokens();
    if (ids.length <= most || overlong == Overlong.ERROR) {
      checkLength(ids.length);
      return ids;
    }
    int[] cut = Arrays.copyOf(ids, most);
    System.arraycopy(ids, ids.length - after, cut, most - after, after);
    return cut;
  }

  private void checkLength(int length) {
    if (length < 1 || length > info.maxTokens()) {
      throw new FletchException(
          "tokens of a text: expected=[1, " + info.maxTokens() + "] actual=" + length);
    }
  }

  @Override
  public float[] embed(String text) {
    return embed(List.of(Objects.requireNonNull(text, "text"))).getFirst();
  }

  @Override
  public List<float[]> embed(List<String> texts) {
    return run(texts.stream().map(this::tokens).toList());
  }

  @Override
  public List<float[]> embedTokens(List<int[]> texts) {
    List<int[]> copies = new ArrayList<>();
    for (int[] ids : texts) {
      checkLength(ids.length);
      for (int id : ids) {
        if (id < 0 || id >= tokenizer.vocabularySize()) {
          throw new FletchException(
              "token id: expected=[0, " + tokenizer.vocabularySize() + ") actual=" + id);
        }
      }
      copies.add(ids.clone());
    }
    return run(copies);
  }

  private List<float[]> run(List<int[]> texts) {
    if (info.pooling() == Pooling.NONE) {
      throw new FletchException(
          "pooling NONE gives a vector per token, not one of the text: use tokenVectors or another"
              + " pooling");
    }
    List<Job> jobs = texts.stream().map(ids -> new Job(ids, info.pooling(), row.length)).toList();
    await(jobs);
    return jobs.stream().map(j -> j.vectors[0]).toList();
  }

  @Override
  public float[][] tokenVectors(String text) {
    Job job = new Job(tokens(text), Pooling.NONE, row.length);
    await(List.of(job));
    return job.vectors;
  }

  /** Queues texts and returns when all have run; throws what made one of them fail. */
  private void await(List<Job> jobs) {
    EmbeddingEvent event = RecordedExecutable.isRecorded() ? new EmbeddingEvent() : null;
    if (event != null) {
      event.begin();
    }
    lock.lock();
    try {
      if (closed) {
        throw new IllegalStateException("the embedder is closed");
      }
      waiting.addAll(jobs);
      for (Job job : jobs) {
        while (!job.finished) {
          if (running) {
            changed.awaitUninterruptibly();
          } else {
            runNext();
          }
        }
      }
    } finally {
      lock.unlock();
    }
    for (Job job : jobs) {
      switch (job.failure) {
        case null -> {}
        case Error e -> throw e;
        // Of this call's own, although other calls may have failed of the same.
        case Throwable e -> throw new FletchException("embedding failed: " + e.getMessage(), e);
      }
    }
    if (event != null) {
      event.end();
      if (event.shouldCommit()) {
        event.texts = jobs.size();
        event.tokens = jobs.stream().mapToInt(j -> j.ids.length).sum();
        event.pooling = jobs.isEmpty() ? "" : jobs.getFirst().pooling.name();
        event.commit();
      }
    }
  }

  /** Runs one forward without the lock, which the caller holds. */
  private void runNext() {
    List<Job> taken = new ArrayList<>();
    int rows = 0;
    boolean isFull = false;
    while (!isFull && !waiting.isEmpty()) {
      int left = waiting.getFirst().left();
      if (!taken.isEmpty() && left > batch.maxRows() - rows) {
        break;
      }
      rows += Math.min(left, batch.maxRows());
      Job job = waiting.removeFirst();
      taken.add(job);
      // A text of more rows than a forward has goes through several, alone: it needs all slots.
      isFull = left > batch.maxRows() || job.done > 0;
    }
    running = true;
    lock.unlock();
    try {
      forward(taken);
    } catch (RuntimeException | Error e) {
      taken.forEach(j -> j.failure = e);
    } finally {
      lock.lock();
      running = false;
      for (Job job : taken) {
        job.finished = job.failure != null || job.left() == 0;
        if (!job.finished) {
          waiting.addFirst(job);
        }
      }
      changed.signalAll();
    }
  }

  private void forward(List<Job> jobs) {
    batch.clear();
    int slot = 0;
    int[] counts = new int[jobs.size()];
    for (int j = 0; j < counts.length; j++) {
      Job job = jobs.get(j);
      int n = Math.min(job.left(), batch.maxRows());
      counts[j] = n;
      // Only a text that runs alone has a beginning that ran before: its slots are the first.
      Span.Own own = info.causal() ? Span.Own.CAUSAL : Span.Own.BIDIRECTIONAL;
      Span span = new Span(kv, n, job.done, slot + job.done, job.done, 0, 0, own, 0);
      int first = batch.add(span, job.ids, job.done);
      for (int i = 0; i < n; i++) {
        if (job.wants(job.done + i)) {
          batch.wantLogits(first + i);
        }
      }
      slot += n;
    }
    executable.forward(batch);
    int at = 0;
    for (int j = 0; j < counts.length; j++) {
      Job job = jobs.get(j);
      for (int i = 0; i < counts[j]; i++, job.done++) {
        if (job.wants(job.done)) {
          batch.logits(at++, row);
          take(job, row);
        }
      }
    }
  }

  /** Takes the state of token {@code job.done}. */
  private void take(Job job, float[] state) {
    switch (job.pooling) {
      case NONE -> job.vectors[job.done] = finish(state.clone());
      case CLS, LAST -> job.vectors[0] = finish(state.clone());
      case MEAN -> {
        for (int i = 0; i < state.length; i++) {
          job.sum[i] += state[i];
        }
        if (job.done == job.ids.length - 1) {
          float[] mean = new float[state.length];
          for (int i = 0; i < mean.length; i++) {
            mean[i] = (float) (job.sum[i] / job.ids.length);
          }
          job.vectors[0] = finish(mean);
        }
      }
    }
  }

  private float[] finish(float[] whole) {
    float[] vector =
        info.dimensions() == whole.length ? whole : Arrays.copyOf(whole, info.dimensions());
    if (info.normalized()) {
      Embedder.normalize(vector);
    }
    return vector;
  }

  @Override
  public void close() {
    lock.lock();
    try {
      if (closed) {
        return;
      }
      closed = true;
      while (running || !waiting.isEmpty()) {
        changed.awaitUninterruptibly();
      }
    } finally {
      lock.unlock();
    }
    try {
      batch.close();
      kv.close();
      executable.close();
    } finally {
      derived.close();
      file.close();
    }
  }

  @Override
  public String toString() {
    return "Embedder[" + name + ", " + Objects.toString(info) + "]";
  }
}
