/**
 * Something new that may bring the engine down, and what to go back to if it does. A value is proven once the engine
 * has decoded a token under it; two crashes before that, and the last proven value is back. Used for the model and
 * for the spec.
 */
export const CRASHES_BEFORE_GOING_BACK = 2;

export class LastGood<T> {
  private value: T;
  private fallback: T | null;
  private crashes = 0;
  private isProven: boolean;

  /** `fallback`: what has proven itself before, null where nothing has. */
  constructor(value: T, fallback: T | null) {
    this.value = value;
    this.fallback = fallback;
    this.isProven = false;
  }

  get current(): T {
    return this.value;
  }

  get proven(): boolean {
    return this.isProven;
  }

  /** What a return would return to; null where there is nothing. */
  get lastGood(): T | null {
    return this.isProven ? this.value : this.fallback;
  }

  /** Puts a value on trial in place of the current one. */
  try(value: T): void {
    this.fallback = this.lastGood;
    this.value = value;
    this.isProven = false;
    this.crashes = 0;
  }

  /** A token was decoded under the current value. True when that is news. */
  prove(): boolean {
    this.crashes = 0;
    if (this.isProven) return false;
    this.isProven = true;
    return true;
  }

  /** The engine crashed under the current value. Returns the value it went back to, or null to carry on. */
  crashed(): T | null {
    if (this.isProven || this.fallback === null) return null;
    this.crashes += 1;
    return this.crashes < CRASHES_BEFORE_GOING_BACK ? null : this.goBack();
  }

  /** Gives the current value up at once; null where there is nothing to go back to. */
  goBack(): T | null {
    if (this.isProven || this.fallback === null) return null;
    this.value = this.fallback;
    this.isProven = true;
    this.crashes = 0;
    return this.value;
  }
}
