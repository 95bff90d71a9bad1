/**
 * Every key of the registry. What one script touches carries the same hash tag, so that it lies in one slot of a
 * Redis Cluster.
 */
export class Keys {
  constructor(private readonly prefix: string) {}

  /** set: ids of all devices ever seen */
  get devices(): string { return `${this.prefix}:{devices}`; }
  /** pub/sub channel of fleet events */
  get events(): string { return `${this.prefix}:events`; }
  /** hash: `<field>|fleet` and `<field>|group:<selector>` → JSON of a pin */
  get pins(): string { return `${this.prefix}:{pins}`; }
  /** sorted set: rollout ids by creation time */
  get rollouts(): string { return `${this.prefix}:{rollouts}`; }
  /** string: JSON of a rollout */
  rollout(id: string): string { return `${this.prefix}:{rollouts}:${id}`; }
  /** string with a time to live: what the learner is doing */
  get activity(): string { return `${this.prefix}:{learner}:activity`; }
  /** stream: the audit log, one field `entry` with JSON */
  get audit(): string { return `${this.prefix}:{audit}`; }
  /** string: counts up, one per pin set */
  get pinOrder(): string { return `${this.prefix}:{pins}:order`; }
  /** string: bytes of a QualitySurface */
  surface(modelHash: string, textHash: string): string { return `${this.prefix}:{surface:${modelHash}}:${textHash}`; }
  /** hash: info, model, reported, telemetry (bytes), installId, bootId, lastSeenMs, settledGeneration */
  state(id: string): string { return this.device(id, 'state'); }
  /** hash: generation, spec (bytes), hash (hex), origin */
  desired(id: string): string { return this.device(id, 'desired'); }
  /** hash with a time to live: installId, bootId, coordinatorId, hostname, fence */
  lease(id: string): string { return this.device(id, 'lease'); }
  /** string: highest fence given out */
  fence(id: string): string { return this.device(id, 'fence'); }
  /** hash: `<field>` → JSON of a pin on this device */
  devicePins(id: string): string { return this.device(id, 'pins'); }
  /** hash: model hash → bytes of the Proposal in force; `last` → bytes of the last outcome */
  learned(id: string): string { return this.device(id, 'learned'); }
  /** list: bytes of RouterWindows, newest first */
  windows(id: string): string { return this.device(id, 'windows'); }
  /** string: sum of the bytes in `windows` */
  windowBytes(id: string): string { return this.device(id, 'window-bytes'); }

  private device(id: string, what: string): string { return `${this.prefix}:{dev:${id}}:${what}`; }
}
