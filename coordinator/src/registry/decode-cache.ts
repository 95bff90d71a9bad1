/** Decodes what many devices have in common, their model or their spec, once. Whoever gets it must not change it. */
export class DecodeCache<T> {
  private readonly known = new Map<string, T>();

  /** `make` may throw; that is not remembered. */
  constructor(private readonly make: (bytes: Buffer) => T, private readonly most = 64, private readonly mostBytes = 4096) {}

  decode(bytes: Buffer): T {
    if (bytes.length > this.mostBytes) return this.make(bytes);
    const key = bytes.toString('latin1');
    const found = this.known.get(key);
    if (found !== undefined) return found;
    const decoded = this.make(bytes);
    // A fleet has few; one that has many gains nothing from remembering the oldest.
    if (this.known.size >= this.most) this.known.clear();
    this.known.set(key, decoded);
    return decoded;
  }
}
