// States and reports in words. Nothing is said that the server did not report.

const percent = (share) => `${Math.round(100 * share)} %`;

/** How far a photo is, in a line. */
export function stateOf(item) {
  switch (item.state) {
    case "waiting":
      return "waiting to be sent";
    case "uploading":
      return item.share < 1 ? `sending, ${percent(item.share)}` : "sent, being stored";
    case "refused":
      return `${item.problem.title.toLowerCase()}; trying again in ${item.retry} s`;
    case "queued":
      return item.job.ahead ? `waiting, ${item.job.ahead} before it` : "next in line";
    case "running": {
      const left = secondsLeft(item);
      return left === null ? "being restored" : `being restored, about ${left} s left`;
    }
    case "done":
      if (item.job.report.photo.content !== "photo") return "left as it was";
      return item.job.library.length ? `restored, after ${item.job.library.join(", ")}` : "restored";
    case "failed":
      return item.problem?.title ?? "failed";
    default:
      return "…";
  }
}

export function secondsLeft(item) {
  if (item.expected === null || item.expected === undefined) return null;
  return Math.max(1, Math.round(item.expected - (Date.now() - item.told) / 1000));
}

/** The share of a photo's way that is behind it; null where that is not known. */
export function shareOf(item) {
  if (item.state === "uploading") return item.share;
  if (item.state !== "running" || secondsLeft(item) === null || !item.since) return null;
  const passed = (item.told - item.since) / 1000 + (Date.now() - item.told) / 1000;
  return Math.min(passed / (passed + secondsLeft(item)), 0.99);
}

function references(report) {
  return report.references.map((use) => {
    const name = use.name ?? (use.source === "library" ? "a picture of the library" : "your colour photo");
    const score = use.score === null ? "" : `, which the library rates ${use.score.toFixed(2)}`;
    const share = report.references.length > 1 && use.share !== null ? `, for ${percent(use.share)} of the matches` : "";
    return `“${name}”${score}${share}`;
  });
}

/** What was done with a photo, a sentence each. */
export function sentencesOf({ report, options, mask }) {
  const { photo, result, seconds } = report;
  const lines = [];
  if (photo.content !== "photo") {
    lines.push("This looks like a page of text or a drawing, so it came back as it was.");
  } else {
    const strength = options.strength ?? 1;
    if (strength > 0) {
      const share = strength < 1 ? ` by ${percent(strength)}` : "";
      lines.push(`Scratches, holes and grain were taken away by a network${share}: what it put in their place is a guess.`);
    } else lines.push("The tones were left as they were, as a strength of 0 % was asked for.");
    if (mask) lines.push("What was marked by hand was filled: what is there now is a guess.");
    if (photo.rectangle) lines.push("The border around the photo was left as it was.");
    if (report.kept_colors) {
      lines.push("The colours are the photo’s own.");
    } else if (report.colorized) {
      lines.push(`The colours are invented. They were taken from ${references(report).join(" and ") || "the network alone"}.`);
      if (report.mean_confidence !== null) {
        lines.push(
          `On average, a place of the photo resembles the place its colour came from by ${report.mean_confidence.toFixed(2)}, where 1 would be the same. Low values mean colours that fit by chance.`,
        );
      }
    } else {
      lines.push(options.color === false ? "No colours were asked for." : "No colours were given: the result is grey.");
    }
  }
  for (const warning of report.warnings) lines.push(`Note: ${warning}.`);
  lines.push(
    `${photo.width} × ${photo.height} pixels, ${photo.format.toUpperCase()} with ${photo.bit_depth} bits, saved as ${result.format.toUpperCase()}.`,
  );
  const all = seconds.decode_photo + seconds.networks + seconds.encode_photo;
  lines.push(`It took ${all.toFixed(1)} s, with the networks ${report.model_version}.`);
  return lines;
}
