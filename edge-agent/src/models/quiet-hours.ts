/** Hours of the day in which nothing is fetched, by the device's clock: `22:00-06:00` reaches over midnight. */

const DAY_MINUTES = 24 * 60;

/** Minutes of the day; `to` is not quiet any more. */
export interface QuietHours { readonly from: number; readonly to: number; }

/** null where the text is no such span. */
export function parseQuietHours(text: string): QuietHours | null {
  const match = /^([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)$/.exec(text.trim());
  if (!match) return null;
  const [from, to] = [60 * Number(match[1]) + Number(match[2]), 60 * Number(match[3]) + Number(match[4])];
  return from === to ? null : { from, to };
}

export function printQuietHours({ from, to }: QuietHours): string {
  return `${clock(from)}-${clock(to)}`;
}

/** How long quiet lasts from `now` on; 0: it is not quiet. Changes of summer time are met at the next look. */
export function quietForMs({ from, to }: QuietHours, now: Date): number {
  const minute = 60 * now.getHours() + now.getMinutes();
  const quiet = from < to ? minute >= from && minute < to : minute >= from || minute < to;
  if (!quiet) return 0;
  return ((to - minute + DAY_MINUTES) % DAY_MINUTES) * 60_000 - now.getSeconds() * 1000 - now.getMilliseconds();
}

function clock(minute: number): string {
  return `${String(Math.floor(minute / 60)).padStart(2, '0')}:${String(minute % 60).padStart(2, '0')}`;
}
