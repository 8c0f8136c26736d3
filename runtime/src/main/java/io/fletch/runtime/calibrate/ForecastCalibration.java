package io.fletch.runtime.calibrate;

import io.fletch.FletchException;
import io.fletch.Model;
import io.fletch.graph.Activation;
import io.fletch.graph.Gate;
import io.fletch.graph.Op;
import io.fletch.graph.StandIn;
import io.fletch.graph.StandInPass;
import io.fletch.graph.Value;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.engine.UnitFiles;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.function.Consumer;
import java.util.stream.IntStream;

/**
 * Fits forecasters and routers of informed routing to a model without back-propagation through it
 * (specs autoregressive 3). Dense forwards of given tokens, layer by layer, give the input and the
 * result of every unit; a forecaster is a ridge regression of low rank in closed form, followed by
 * AdamW if it has an activation. A token's label for a unit is whether the forecast's error,
 * relative to the residual stream, is among the share of smallest ones of all units and tokens; the
 * router of the unit learns the labels from the unit's input, and its bias is set so that it routes
 * as many tokens as have the label. Expect less than from routers trained through the model: files
 * say {@code router=local}.
 *
 * <p>Memory: the residual stream of all tokens, and inputs and results of one layer's units. Used
 * by one thread; the two units of a layer are worked on in parallel, and no result depends on it.
 */
public final class ForecastCalibration implements AutoCloseable {
  /** Which units get forecasters. */
  public enum Units {
    BOTH,
    ATTENTION,
    FFN
  }

  /** What a router learns to tell. */
  public enum Judge {
    /** Tokens whose forecast is good. */
    RECOVERABILITY,
    /** Tokens for which the unit does little: greedy routing, to compare with. */
    IMPORTANCE
  }

  /**
   * What is fitted.
   *
   * @param units which units
   * @param rank of the forecasters, at most the model's width
   * @param ridge share of the inputs' mean square on the diagonal
   * @param silu whether SiLU is between the two matrices of a forecaster
   * @param steps of AdamW after the closed form; only with SiLU
   * @param routerWidth of a router's hidden layer; 0 for none
   * @param routerSteps of AdamW for a router
   * @param judge what routers learn
   * @param seed of all draws
   */
  public record Options(
      Units units,
      int rank,
      double ridge,
      boolean silu,
      int steps,
      int routerWidth,
      int routerSteps,
      Judge judge,
      long seed) {
    /** Checks ranges. */
    public Options {
      Objects.requireNonNull(units, "units");
      Objects.requireNonNull(judge, "judge");
      if (rank < 1 || !(ridge > 0) || steps < 0 || routerWidth < 0 || routerSteps < 1) {
        throw new FletchException(
            "forecasters: expected rank>=1, ridge>0, steps>=0, router width>=0, router steps>=1"
                + " actual="
                + rank
                + ", "
                + ridge
                + ", "
                + steps
                + ", "
                + routerWidth
                + ", "
                + routerSteps);
      }
    }
  }

  /**
   * How good a unit's forecaster and router are on the tokens that were held back.
   *
   * @param layer of the unit
   * @param attention whether it is attention, not the feed-forward unit
   * @param unexplained squared error of the forecast, by the variance of the unit's result
   * @param error mean of |forecast - result| by |residual stream|
   * @param skipError the same if nothing took the unit's place
   */
  public record UnitFit(
      int layer, boolean attention, double unexplained, double error, double skipError) {}

  /**
   * What a router does on the tokens that were held back.
   *
   * @param layer of the unit
   * @param attention whether it is attention, not the feed-forward unit
   * @param labelled share of the fitted tokens that have the label; below {@link #LEAST} the unit
   *     gets no router and always runs
   * @param routed share of tokens that it routes
   * @param right share of tokens for which it decides as their label says
   */
  public record RouterFit(
      int layer, boolean attention, double labelled, double routed, double right) {}

  /** A unit that would be approximated for fewer tokens than this is left alone. */
  public static final double LEAST = 0.005;

  /** Standard deviation of what goes into SiLU at the start, where it is nearly linear. */
  private static final double SILU_INPUT = 0.25;

  private static final SmallNetwork.Schedule ROUTER =
      new SmallNetwork.Schedule(0, 256, 2e-3, true, 0.01, 1);

  private final Options options;
  private final Calibration calibration;
  private final TensorStore derived;
  private final TensorStore store = TensorStore.create();
  private final List<Unit> units = new ArrayList<>();
  private final int fitted;
  private final int[] firstRow;
  private final int fittedRows;
  private final int rows;
  private final List<UnitFit> fits = new ArrayList<>();

  /** A unit, where it lies in the graph, and what was found for it. */
  private static final class Unit {
    final Gate gate;
    final Value in;
    final Op.Add add;
    SmallNetwork forecaster;
    float[] errors;
    float[] skipErrors;

    Unit(Gate gate, Value in, Op.Add add) {
      this.gate = gate;
      this.in = in;
      this.add = add;
    }

    boolean isAttention() {
      return gate.unit() == Gate.Unit.ATTENTION;
    }
  }

  /** Inputs, results and norms of the residual stream of one unit, all rows. */
  private record Rows(float[] x, float[] y, float[] norm) {}

  private ForecastCalibration(
      Options options,
      Calibration calibration,
      TensorStore derived,
      int[][] fitting,
      int[][] heldBack) {
    this.options = options;
    this.calibration = calibration;
    this.derived = derived;
    fitted = fitting.length;
    firstRow = new int[fitting.length + heldBack.length];
    int row = 0;
    for (int s = 0; s < firstRow.length; s++) {
      firstRow[s] = row;
      row += s < fitted ? fitting[s].length : heldBack[s - fitted].length;
    }
    rows = row;
    fittedRows = heldBack.length == 0 ? row : firstRow[fitted];
    for (Gate gate : StandInPass.units(calibration.graph())) {
      boolean attention = gate.unit() == Gate.Unit.ATTENTION;
      if (options.units() == Units.BOTH || attention == (options.units() == Units.ATTENTION)) {
        Op.Add add = StandInPass.add(calibration.graph(), gate);
        units.add(new Unit(gate, StandInPass.input(calibration.graph(), gate), add));
      }
    }
    if (units.isEmpty()) {
      throw new FletchException("the model has no unit that could be forecast: " + options.units());
    }
  }

  /**
   * Fits the forecasters.
   *
   * @param file of the model; stays open until this is closed
   * @param fitting sequences of tokens to fit to
   * @param heldBack sequences to measure with, at least one
   * @param progress hears what is being done
   * @throws FletchException if the model cannot be run, or there are too few tokens
   */
  public static ForecastCalibration fit(
      WeightFile file,
      int[][] fitting,
      int[][] heldBack,
      Options options,
      Consumer<String> progress) {
    if (fitting.length == 0 || heldBack.length == 0) {
      throw new FletchException(
          "texts: expected=some to fit to and some to measure with actual="
              + fitting.length
              + ", "
              + heldBack.length);
    }
    int[][] all = Arrays.copyOf(fitting, fitting.length + heldBack.length);
    System.arraycopy(heldBack, 0, all, fitting.length, heldBack.length);
    TensorStore derived = TensorStore.create();
    ForecastCalibration c = null;
    try {
      Calibration calibration = Calibration.start(file, all, derived);
      c = new ForecastCalibration(options, calibration, derived, fitting, heldBack);
      c.fitForecasters(progress);
      return c;
    } catch (RuntimeException | Error e) {
      if (c == null) {
        derived.close();
      } else {
        c.close();
      }
      throw e;
    }
  }

  /** Tokens that were fitted to. */
  public int fittedTokens() {
    return fittedRows;
  }

  /** Tokens that were held back. */
  public int heldBackTokens() {
    return rows - fittedRows;
  }

  /** The forecasters' errors, unit after unit. */
  public List<UnitFit> fits() {
    return List.copyOf(fits);
  }

  private void fitForecasters(Consumer<String> progress) {
    for (int layer = 0; layer < calibration.layers(); layer++) {
      progress.accept("forecasters, layer " + (layer + 1) + " of " + calibration.layers());
      List<Unit> here = here(layer);
      if (!here.isEmpty()) {
        List<Rows> data = collect(here, true);
        IntStream.range(0, here.size())
            .parallel()
            .forEach(u -> forecaster(here.get(u), data.get(u)));
        for (int u = 0; u < here.size(); u++) {
          fits.add(measure(here.get(u), data.get(u)));
        }
      }
      calibration.advance();
    }
  }

  private List<Unit> here(int layer) {
    return units.stream().filter(u -> u.gate.layer() == layer).toList();
  }

  private List<Rows> collect(List<Unit> here, boolean results) {
    List<Rows> data = new ArrayList<>();
    for (Unit u : here) {
      data.add(
          new Rows(
              new float[Math.multiplyExact(rows, u.in.width())],
              new float[results ? Math.multiplyExact(rows, u.add.out().width()) : 0],
              new float[results ? rows : 0]));
    }
    calibration.watch((sequence, values) -> {
      int row = firstRow[sequence];
      for (int i = 0; i < here.size(); i++) {
        Unit u = here.get(i);
        float[] x = values.apply(u.in);
        System.arraycopy(x, 0, data.get(i).x(), row * u.in.width(), x.length);
        if (results) {
          float[] y = values.apply(u.add.branch());
          System.arraycopy(y, 0, data.get(i).y(), row * u.add.out().width(), y.length);
          float[] stream = values.apply(u.add.residual());
          int n = u.add.out().width();
          for (int r = 0; r < stream.length / n; r++) {
            data.get(i).norm()[row + r] = (float) norm(stream, r * n, n);
          }
        }
      }
    });
    return data;
  }

  private static double norm(float[] x, int from, int n) {
    double squares = 0;
    for (int i = from; i < from + n; i++) {
      squares += (double) x[i] * x[i];
    }
    return Math.sqrt(squares);
  }

  private void forecaster(Unit u, Rows data) {
    int in = u.in.width();
    int out = u.add.out().width();
    ReducedRankRidge ridge = new ReducedRankRidge(in, out);
    int block = 1024;
    for (int from = 0; from < fittedRows; from += block) {
      int n = Math.min(block, fittedRows - from);
      ridge.add(
          Arrays.copyOfRange(data.x(), from * in, (from + n) * in),
          Arrays.copyOfRange(data.y(), from * out, (from + n) * out),
          n);
    }
    ReducedRankRidge.Solution s = ridge.solve(options.rank(), options.ridge());
    Optional<Activation> activation =
        options.silu() ? Optional.of(Activation.SILU) : Optional.empty();
    u.forecaster = new SmallNetwork(in, s.rank(), out, activation);
    double[] scale = new double[s.rank()];
    Arrays.fill(scale, 1);
    if (options.silu()) {
      deviations(s, data.x(), in, scale);
    }
    for (int c = 0; c < s.rank(); c++) {
      for (int j = 0; j < in; j++) {
        u.forecaster.first[j * s.rank() + c] = (float) (s.down()[c * in + j] * scale[c]);
      }
      u.forecaster.firstBias[c] = (float) (s.downBias()[c] * scale[c]);
      // Near 0, SiLU halves.
      double back = options.silu() ? 2 / scale[c] : 1;
      for (int k = 0; k < out; k++) {
        u.forecaster.second[c * out + k] = (float) (s.up()[k * s.rank() + c] * back);
      }
    }
    for (int k = 0; k < out; k++) {
      u.forecaster.secondBias[k] = (float) s.upBias()[k];
    }
    if (options.silu() && options.steps() > 0) {
      u.forecaster.train(
          data.x(),
          data.y(),
          fittedRows,
          SmallNetwork.Loss.SMOOTH_L1,
          new SmallNetwork.Schedule(options.steps(), 64, 1e-3, true, 0.01, 1),
          seed(u));
    }
  }

  /** What makes each hidden element's deviation that of {@link #SILU_INPUT}. */
  private void deviations(ReducedRankRidge.Solution s, float[] x, int in, double[] scale) {
    double[] squares = new double[s.rank()];
    for (int r = 0; r < fittedRows; r++) {
      for (int c = 0; c < s.rank(); c++) {
        double z = s.downBias()[c];
        for (int j = 0; j < in; j++) {
          z += s.down()[c * in + j] * x[r * in + j];
        }
        squares[c] += z * z;
      }
    }
    for (int c = 0; c < s.rank(); c++) {
      double deviation = Math.sqrt(squares[c] / fittedRows);
      scale[c] = deviation > 1e-12 ? SILU_INPUT / deviation : 1;
    }
  }

  private long seed(Unit u) {
    return options.seed() * 1_000_003 + 2L * u.gate.layer() + u.gate.unit().ordinal();
  }

  private UnitFit measure(Unit u, Rows data) {
    int out = u.add.out().width();
    float[] forecast = u.forecaster.apply(data.x(), rows);
    u.errors = new float[rows];
    u.skipErrors = new float[rows];
    double scale = Math.abs(u.add.scale());
    float[] difference = new float[out];
    double[] sum = new double[out];
    double squares = 0;
    double left = 0;
    double error = 0;
    double skipError = 0;
    for (int r = 0; r < rows; r++) {
      for (int k = 0; k < out; k++) {
        difference[k] = forecast[r * out + k] - data.y()[r * out + k];
      }
      double wrong = norm(difference, 0, out);
      double size = norm(data.y(), r * out, out);
      double stream = Math.max(data.norm()[r], 1e-20);
      u.errors[r] = (float) (scale * wrong / stream);
      u.skipErrors[r] = (float) (scale * size / stream);
      if (r >= fittedRows) {
        left += wrong * wrong;
        squares += size * size;
        for (int k = 0; k < out; k++) {
          sum[k] += data.y()[r * out + k];
        }
        error += u.errors[r];
        skipError += u.skipErrors[r];
      }
    }
    int n = rows - fittedRows;
    for (double s : sum) {
      squares -= s * s / n;
    }
    return new UnitFit(
        u.gate.layer(),
        u.isAttention(),
        squares > 0 ? left / squares : 0,
        error / n,
        skipError / n);
  }

  /** Forecasters with routers for some share of approximated units. */
  public final class Routed {
    private final List<StandIn> standIns;
    private final List<RouterFit> fits;

    private Routed(List<StandIn> standIns, List<RouterFit> fits) {
      this.standIns = standIns;
      this.fits = fits;
    }

    /** The routers, unit after unit. */
    public List<RouterFit> fits() {
      return fits;
    }

    /** Share of the held-back tokens' units, of those that could be forecast, that are routed. */
    public double routed() {
      return fits.stream().mapToDouble(RouterFit::routed).average().orElse(0);
    }

    /**
     * Writes a Fletch Arrow file for the model that was fitted to.
     *
     * @param facts what else to record: texts and numbers
     */
    public void save(Path file, Model target, Map<String, Object> facts) {
      UnitFiles.saveForecasts(standIns, file, target, facts);
    }
  }

  /**
   * Trains routers.
   *
   * @param shares of the forecastable units of all tokens that shall be approximated, each in (0,
   *     1)
   * @return as many results, whose forecasters are the same
   * @throws FletchException if a share leaves nothing to route
   */
  public List<Routed> route(List<Double> shares, Consumer<String> progress) {
    List<Float> limits = new ArrayList<>();
    float[] sorted = new float[Math.multiplyExact(units.size(), fittedRows)];
    for (int u = 0; u < units.size(); u++) {
      System.arraycopy(judged(units.get(u)), 0, sorted, u * fittedRows, fittedRows);
    }
    Arrays.sort(sorted);
    for (double share : shares) {
      if (!(share > 0 && share < 1)) {
        throw new FletchException("share of approximated units: expected=(0, 1) actual=" + share);
      }
      limits.add(
          sorted[(int) Math.clamp(Math.round(share * sorted.length) - 1, 0L, sorted.length - 1L)]);
    }
    List<List<StandIn>> standIns = new ArrayList<>();
    List<List<RouterFit>> routers = new ArrayList<>();
    for (int i = 0; i < shares.size(); i++) {
      standIns.add(new ArrayList<>());
      routers.add(new ArrayList<>());
    }
    calibration.restart();
    for (int layer = 0; layer < calibration.layers(); layer++) {
      progress.accept("routers, layer " + (layer + 1) + " of " + calibration.layers());
      List<Unit> here = here(layer);
      List<Rows> data = here.isEmpty() ? List.of() : collect(here, false);
      for (int i = 0; i < shares.size(); i++) {
        float limit = limits.get(i);
        List<Router> found =
            IntStream.range(0, here.size())
                .parallel()
                .mapToObj(u -> router(here.get(u), data.get(u).x(), limit))
                .toList();
        for (int u = 0; u < here.size(); u++) {
          routers.get(i).add(found.get(u).fit());
          if (found.get(u).network() != null) {
            standIns.get(i).add(standIn(here.get(u), found.get(u).network(), i));
          }
        }
      }
      calibration.advance();
    }
    List<Routed> all = new ArrayList<>();
    for (int i = 0; i < shares.size(); i++) {
      if (standIns.get(i).isEmpty()) {
        throw new FletchException("no unit has enough tokens to route: share=" + shares.get(i));
      }
      all.add(new Routed(List.copyOf(standIns.get(i)), List.copyOf(routers.get(i))));
    }
    return all;
  }

  private float[] judged(Unit u) {
    return options.judge() == Judge.RECOVERABILITY ? u.errors : u.skipErrors;
  }

  private record Router(SmallNetwork network, RouterFit fit) {}

  private Router router(Unit u, float[] x, float limit) {
    int in = u.in.width();
    float[] judged = judged(u);
    float[] target = new float[2 * rows];
    int labelled = 0;
    int heldLabelled = 0;
    for (int r = 0; r < rows; r++) {
      boolean approximate = judged[r] <= limit;
      target[2 * r] = approximate ? 0 : 1;
      target[2 * r + 1] = approximate ? 1 : 0;
      labelled += approximate && r < fittedRows ? 1 : 0;
      heldLabelled += approximate && r >= fittedRows ? 1 : 0;
    }
    int held = rows - fittedRows;
    double share = (double) labelled / fittedRows;
    if (share < LEAST) {
      double right = (double) (held - heldLabelled) / held;
      return new Router(null, new RouterFit(u.gate.layer(), u.isAttention(), share, 0, right));
    }
    SmallNetwork network =
        new SmallNetwork(in, options.routerWidth(), 2, Optional.of(Activation.RELU));
    if (share > 1 - LEAST) {
      // Nothing to tell: always approximated.
      network.secondBias[1] = 1;
    } else {
      learn(network, u, x, target, labelled);
    }
    float[] z = network.apply(x, rows);
    int routed = 0;
    int right = 0;
    for (int r = fittedRows; r < rows; r++) {
      boolean approximate = z[2 * r] - z[2 * r + 1] < 0;
      routed += approximate ? 1 : 0;
      right += approximate == (target[2 * r + 1] == 1) ? 1 : 0;
    }
    return new Router(
        network,
        new RouterFit(
            u.gate.layer(), u.isAttention(), share, (double) routed / held, (double) right / held));
  }

  private void learn(SmallNetwork network, Unit u, float[] x, float[] target, int labelled) {
    int in = u.in.width();
    double[] mean = new double[in];
    double[] deviation = new double[in];
    for (int r = 0; r < fittedRows; r++) {
      for (int j = 0; j < in; j++) {
        mean[j] += x[r * in + j];
      }
    }
    for (int j = 0; j < in; j++) {
      mean[j] /= fittedRows;
    }
    for (int r = 0; r < fittedRows; r++) {
      for (int j = 0; j < in; j++) {
        double d = x[r * in + j] - mean[j];
        deviation[j] += d * d;
      }
    }
    for (int j = 0; j < in; j++) {
      deviation[j] = Math.max(Math.sqrt(deviation[j] / fittedRows), 1e-6);
    }
    float[] normalised = new float[fittedRows * in];
    for (int r = 0; r < fittedRows; r++) {
      for (int j = 0; j < in; j++) {
        normalised[r * in + j] = (float) ((x[r * in + j] - mean[j]) / deviation[j]);
      }
    }
    network.randomise(seed(u));
    network.train(
        normalised,
        target,
        fittedRows,
        SmallNetwork.Loss.CROSS_ENTROPY,
        new SmallNetwork.Schedule(
            options.routerSteps(),
            ROUTER.batch(),
            ROUTER.rate(),
            ROUTER.cosine(),
            ROUTER.decay(),
            ROUTER.clip()),
        seed(u));
    network.foldNormalisation(mean, deviation);
    // The threshold at which as many tokens are routed as have the label becomes 0.
    float[] z = network.apply(x, fittedRows);
    float[] scores = new float[fittedRows];
    for (int r = 0; r < fittedRows; r++) {
      scores[r] = z[2 * r] - z[2 * r + 1];
    }
    Arrays.sort(scores);
    double below = scores[labelled - 1];
    double above = scores[Math.min(labelled, fittedRows - 1)];
    network.secondBias[0] -= (float) ((below + above) / 2);
  }

  private StandIn standIn(Unit u, SmallNetwork router, int level) {
    int in = u.in.width();
    int out = u.add.out().width();
    SmallNetwork f = u.forecaster;
    String name = "level" + level + "." + u.gate.layer() + "." + u.gate.unit() + ".";
    int width = router.hidden() == 0 ? in : router.hidden();
    Optional<StandIn.Layer> hidden =
        router.hidden() == 0
            ? Optional.empty()
            : Optional.of(layer(name + "hidden", router.first, router.firstBias, in, width));
    return new StandIn(
        u.gate,
        hidden,
        layer(name + "output", router.second, router.secondBias, width, 2),
        layer(name + "down", f.first, f.firstBias, in, f.hidden()),
        options.silu() ? Optional.of(Activation.SILU) : Optional.empty(),
        layer(name + "up", f.second, f.secondBias, f.hidden(), out));
  }

  private StandIn.Layer layer(String name, float[] w, float[] bias, int in, int out) {
    Tensor weight = store.floats(name, SmallNetwork.transposed(w, in, out), out, in);
    return new StandIn.Layer(
        LinearOp.dense(weight), store.floats(name + ".bias", bias.clone(), out));
  }

  /** Releases what was fitted; results that were saved stay. */
  @Override
  public void close() {
    store.close();
    derived.close();
  }
}
