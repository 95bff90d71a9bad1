/**
 * Tells when the mean of a sequence has moved, either way (Page 1954, Hinkley 1971). It is fed residuals in units of
 * their own standard deviation, clipped, so that one outlier raises no alarm.
 */
export interface PageHinkley { readonly up: number; readonly down: number }

export const CALM: PageHinkley = { up: 0, down: 0 };

/** Shifts below half a standard deviation are let pass. */
const DRIFT = 0.5;
/** With normal residuals a false alarm every few thousand samples; a shift by two deviations is seen after six. */
const ALARM = 8;
const CLIP = 3;

/** The next state, and whether the mean went up (1), down (-1) or stayed (0); after an alarm it begins anew. */
export function pageHinkley(state: PageHinkley, residual: number): { state: PageHinkley; moved: -1 | 0 | 1 } {
  const clipped = Math.max(-CLIP, Math.min(CLIP, residual));
  const up = Math.max(0, state.up + clipped - DRIFT);
  const down = Math.max(0, state.down - clipped - DRIFT);
  if (up > ALARM) return { state: CALM, moved: 1 };
  if (down > ALARM) return { state: CALM, moved: -1 };
  return { state: { up, down }, moved: 0 };
}
