/**
 * The text of an answer as it may be shown while its tokens arrive. Tokens are bytes and may end inside a character;
 * a stop string may begin in one token and end in a later one. So text is held back for as long as it could still turn
 * out to be the begin of a stop string, and nothing of a stop string is ever shown. The result does not depend on how
 * the bytes were cut into pieces: the stop string that is complete first ends the answer (of two complete at the same
 * character, the longer).
 */
export class AnswerText {
  // `fatal: false`: bytes that are no UTF-8 become U+FFFD. A byte order mark is text like any other here.
  private readonly decoder = new TextDecoder('utf-8', { fatal: false, ignoreBOM: true });
  private held = '';
  private ended = false;

  constructor(private readonly stops: readonly string[]) {}

  /** A stop string was found; nothing is shown any more. */
  get stopped(): boolean {
    return this.ended;
  }

  /** Text that may be shown after these bytes; often empty. */
  push(bytes: Uint8Array): string {
    return this.ended ? '' : this.advance(this.decoder.decode(bytes, { stream: true }));
  }

  /** The rest, once no more bytes will come. */
  finish(): string {
    if (this.ended) return '';
    const shown = this.advance(this.decoder.decode());
    if (this.stopped) return shown;
    const rest = this.held;
    this.held = '';
    return shown + rest;
  }

  private advance(text: string): string {
    const all = this.held + text;
    const stop = firstStop(all, this.stops);
    if (stop !== null) {
      this.ended = true;
      this.held = '';
      return all.slice(0, stop);
    }
    const keep = longestOpenStop(all, this.stops);
    this.held = all.slice(all.length - keep);
    return all.slice(0, all.length - keep);
  }
}

/** Where the stop string that is complete first begins in `text`; null where none is in it. */
function firstStop(text: string, stops: readonly string[]): number | null {
  let found: { begin: number; end: number } | null = null;
  for (const stop of stops) {
    const begin = text.indexOf(stop);
    if (begin < 0) continue;
    const end = begin + stop.length;
    if (!found || end < found.end || (end === found.end && begin < found.begin)) found = { begin, end };
  }
  return found?.begin ?? null;
}

/** Length of the longest end of `text` that begins a stop string without completing it. */
function longestOpenStop(text: string, stops: readonly string[]): number {
  let longest = 0;
  for (const stop of stops) {
    for (let length = Math.min(stop.length - 1, text.length); length > longest; length -= 1) {
      if (text.endsWith(stop.slice(0, length))) longest = length;
    }
  }
  return longest;
}
