package io.fletch.runtime.engine;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.KvCache;
import io.fletch.graph.LowRankAdapter;
import io.fletch.graph.Span;
import io.fletch.sampling.CanvasForward;
import io.fletch.sampling.CanvasWindow;
import io.fletch.sampling.LogitEdits;
import io.fletch.sampling.RowStatistics;
import io.fletch.sampling.SamplingException;
import java.util.ArrayList;
import java.util.List;

/**
 * The graph as a diffusion schedule sees it: every window is a span of one batch. Owned by a
 * session and used by one thread at a time; caches and batch are kept from request to request where
 * their sizes fit.
 */
final class GraphCanvas implements CanvasForward, AutoCloseable {
  private final Executable executable;
  private final int context;
  private final KvCache.Type type;
  private final int vocabulary;
  private final int mostRows;
  private final long weightBytes;
  private final long slotBytes;
  private final List<KvCache> caches = new ArrayList<>();
  private final Batch.RowStatistics statistics = new Batch.RowStatistics();
  private int[] firstHead = new int[4];
  private float[] row = new float[0];
  private Batch batch;
  private long bytesRead;
  private LogitEdits edits = LogitEdits.none();
  private List<LowRankAdapter.Term> terms = List.of();

  GraphCanvas(LoadedModel model) {
    executable = model.executable();
    context = model.contextLength();
    type = model.kvType();
    weightBytes = model.info().bytesPerToken();
    slotBytes = model.kvBytesPerToken();
    this.vocabulary = executable.graph().vocabulary();
    this.mostRows = executable.plans().getLast().maxRows();
  }

  /** What is added to products from now on; nothing is kept from request to request. */
  void adapt(List<LowRankAdapter.Term> next) {
    terms = next;
  }

  @Override
  public int vocabulary() {
    return vocabulary;
  }

  @Override
  public int context() {
    return context;
  }

  @Override
  public void begin(int cacheCount, int slots, int rows, int headRows, LogitEdits newEdits) {
    if (rows > mostRows) {
      throw new SamplingException(
          "rows of one forward: expected=at most "
              + mostRows
              + " at a context of "
              + context
              + " tokens (a longer context, a smaller depth or fewer beams help) actual="
              + rows);
    }
    edits = newEdits;
    if (batch == null || batch.maxRows() < rows || batch.maxLogitRows() < headRows) {
      closeBatch();
      batch = executable.newBatch(rows, headRows);
    }
    if (!caches.isEmpty() && caches.getFirst().capacity() < slots) {
      closeCaches();
    }
    while (caches.size() < cacheCount) {
      caches.add(executable.newKvCache(slots, type));
    }
  }

  @Override
  public void run(List<CanvasWindow> windows) {
    batch.clear();
    if (firstHead.length < windows.size()) {
      firstHead = new int[windows.size()];
    }
    for (int i = 0; i < windows.size(); i++) {
      CanvasWindow w = windows.get(i);
      int first = batch.add(span(w), w.tokens(), 0);
      for (int r = 0; !terms.isEmpty() && r < w.rows(); r++) {
        batch.adapt(first + r, terms);
      }
      bytesRead += (w.prefix() + w.suffixTo() - w.suffixFrom() + w.rows()) * slotBytes;
      firstHead[i] = batch.logitRows();
      for (int head : w.heads()) {
        batch.wantLogits(first + head);
      }
    }
    executable.forward(batch);
    bytesRead += weightBytes;
  }

  /**
   * Weights once per forward, and for every window the keys and values that it sees: what must come
   * from memory if nothing is in a cache of the processor.
   */
  @Override
  public long bytesRead() {
    return bytesRead;
  }

  private Span span(CanvasWindow w) {
    Span.Own own =
        switch (w.own()) {
          case BIDIRECTIONAL -> Span.Own.BIDIRECTIONAL;
          case BLOCK_CAUSAL -> Span.Own.BLOCK_CAUSAL;
        };
    return new Span(
        caches.get(w.cache()),
        w.rows(),
        w.position(),
        w.slot(),
        w.prefix(),
        w.suffixFrom(),
        w.suffixTo(),
        own,
        w.block());
  }

  @Override
  public void statistics(int window, int head, RowStatistics into) {
    int logitRow = firstHead[window] + head;
    if (edits.isEmpty()) {
      batch.statistics(logitRow, statistics);
      GraphForward.copy(statistics, into);
      return;
    }
    if (row.length < vocabulary) {
      row = new float[vocabulary];
    }
    batch.logits(logitRow, row);
    edits.apply(row, 0, vocabulary);
    into.set(row, 0, vocabulary);
  }

  @Override
  public void logits(int window, int head, float[] target) {
    batch.logits(firstHead[window] + head, target);
  }

  @Override
  public void copy(int fromCache, int fromSlot, int toCache, int toSlot, int count) {
    caches.get(toCache).copy(caches.get(fromCache), fromSlot, toSlot, count);
  }

  private void closeBatch() {
    if (batch != null) {
      batch.close();
      batch = null;
    }
  }

  private void closeCaches() {
    caches.forEach(KvCache::close);
    caches.clear();
  }

  @Override
  public void close() {
    closeBatch();
    closeCaches();
  }
}
