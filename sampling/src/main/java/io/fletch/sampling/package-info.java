/**
 * Sampler chain and decode schedules over two small interfaces to a model, and nothing else of
 * ours.
 *
 * <p><b>Autoregressive</b>: {@link io.fletch.sampling.AutoregressiveDecoder} over {@link
 * io.fletch.sampling.CausalForward}, drawing with a {@link io.fletch.sampling.Sampler}.
 *
 * <p><b>Diffusion</b>: {@link io.fletch.sampling.DiffusionDecoder} over {@link
 * io.fletch.sampling.CanvasForward}, configured by {@link io.fletch.sampling.DiffusionOptions}: one
 * {@link io.fletch.sampling.Transfer} policy (what a step commits), one {@link
 * io.fletch.sampling.Caching} policy (what is kept), at most one {@link io.fletch.sampling.Search}
 * (what is wrapped around the steps), any number of {@link io.fletch.sampling.Exit}s. A line of
 * text gives options by {@link io.fletch.sampling.DiffusionTechnique}. Each method is one class
 * whose comment states the algorithm and its section of the specification.
 *
 * <p>Everything random is keyed by (seed, position) through {@link
 * io.fletch.sampling.CounterRandom}: a result is a function of model, options and prompt. Decoders
 * belong to one thread at a time; options are immutable.
 */
package io.fletch.sampling;
