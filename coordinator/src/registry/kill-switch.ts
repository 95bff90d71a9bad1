/** The kill switch as it is stored: while it is there, every device routes as its model does. */

export interface KillSwitch {
  readonly why: string;
  readonly sinceMs: number;
}

/** Damaged means held: a switch that cannot be read was pulled by someone. null: not held. */
export function decodeKillSwitch(json: string | undefined): KillSwitch | null {
  if (json === undefined) return null;
  try {
    const { why, sinceMs } = JSON.parse(json) as Partial<KillSwitch>;
    return { why: typeof why === 'string' ? why : '', sinceMs: typeof sinceMs === 'number' && Number.isSafeInteger(sinceMs) && sinceMs >= 0 ? sinceMs : 0 };
  } catch {
    return { why: 'its record in Redis is damaged', sinceMs: 0 };
  }
}
