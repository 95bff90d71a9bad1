/** The next turn of the event loop, one promise for all that wait for it: thousands of sessions do at once. */
let waiting: Promise<void> | null = null;

export function nextTurn(): Promise<void> {
  waiting ??= new Promise((resolve) => setImmediate(() => {
    waiting = null;
    resolve();
  }));
  return waiting;
}
