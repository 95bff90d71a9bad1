/** What the agents of one process have done, in sum. Plain numbers, so that they can be sent and added up. */
import type { CallEnd } from './grpc-stream';

export interface FleetFigures {
  /** agents that are welcome at this moment */
  open: number;
  /** attempts to connect, and those that ended with a welcome */
  dials: number;
  welcomes: number;
  /** TLS handshakes completed, agents that have been let in with a certificate of their own, and sessions open now */
  tlsHandshakes: number;
  certificates: number;
  tlsSessions: number;
  /** messages, all kinds */
  sent: number;
  received: number;
  framesSent: number;
  /** not sent because the coordinator had not read the one before */
  framesHeld: number;
  desiredReceived: number;
  applied: number;
  /** streams that ended, by gRPC status and reason */
  ended: Record<string, number>;
}

/** Reasons kept apart; more would only be noise. */
const MOST_REASONS = 20;

export class FleetCounts implements FleetFigures {
  open = 0;
  dials = 0;
  welcomes = 0;
  tlsHandshakes = 0;
  certificates = 0;
  tlsSessions = 0;
  sent = 0;
  received = 0;
  framesSent = 0;
  framesHeld = 0;
  desiredReceived = 0;
  applied = 0;
  readonly ended: Record<string, number> = {};

  note({ code, details }: CallEnd): void {
    // Ids, ports and addresses would make every reason one of its own.
    const reason = `${code} ${details.replace(/\d+/g, 'N').slice(0, 120)}`;
    const key = reason in this.ended || Object.keys(this.ended).length < MOST_REASONS ? reason : 'others';
    this.ended[key] = (this.ended[key] ?? 0) + 1;
  }

  figures(): FleetFigures {
    const { ended, ...numbers } = this;
    return { ...numbers, ended: { ...ended } } as FleetFigures;
  }
}

export function addFigures(all: readonly FleetFigures[]): FleetFigures {
  const sum = new FleetCounts();
  for (const figures of all) {
    for (const [name, value] of Object.entries(figures)) {
      if (typeof value === 'number') (sum as unknown as Record<string, number>)[name]! += value;
    }
    for (const [reason, times] of Object.entries(figures.ended)) sum.ended[reason] = (sum.ended[reason] ?? 0) + times;
  }
  return sum.figures();
}
